"""compiled_text.py: a small program written by hand, whose loop copies a weight, the cache, and what it computed."""

import compiled_text
import pytest

TEXT = """
HloModule jit_f

%move (p.1: bf16[8,4]) -> f32[4,8] {
  %p.1 = bf16[8,4]{1,0} parameter(0)
  %wide = f32[8,4]{1,0} convert(%p.1)
  ROOT %turned = f32[4,8]{1,0} transpose(%wide), dimensions={1,0}
}

%sums (p.2: f32[4,8]) -> f32[8] {
  %p.2 = f32[4,8]{1,0} parameter(0)
  %copied = f32[4,8]{0,1} copy(%p.2)
  ROOT %sum = f32[8]{0} reduce(%copied), dimensions={0}
}

%again (t.3: (s32[], bf16[8,4])) -> (s32[], bf16[8,4]) {
  %t.3 = (s32[], bf16[8,4]{1,0}) parameter(0)
  %i.3 = s32[] get-tuple-element(%t.3), index=0
  %w.3 = bf16[8,4]{1,0} get-tuple-element(%t.3), index=1
  %same.3 = bf16[8,4]{0,1} copy(%w.3), metadata={op_name="jit(f)/inner"}
  ROOT %r.3 = (s32[], bf16[8,4]{1,0}) tuple(%i.3, %w.3)
}

%body (t: (s32[], bf16[8,4], f32[2,16], /*index=3*/f32[8])) -> (s32[], bf16[8,4], f32[2,16], f32[8]) {
  %t = (s32[], bf16[8,4]{1,0}, f32[2,16]{1,0}, f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %w = bf16[8,4]{1,0} get-tuple-element(%t), index=1
  %k = f32[2,16]{1,0} get-tuple-element(%t), index=2
  %x = f32[8]{0} get-tuple-element(%t), index=3
  %named = bf16[8,4]{1,0} bitcast(%w)
  %fusion.1 = f32[4,8]{1,0} fusion(%named), kind=kLoop, calls=%move, metadata={op_name="jit(f)/product"}
  %fusion.2 = f32[8]{0} fusion(%fusion.1), kind=kLoop, calls=%sums, backend_config={"estimated_cycles":"70"}
  %near = (bf16[8,4]{1,0:T(8,128)S(1)}, bf16[8,4]{1,0}, u32[]) copy-start(%w)
  %k.2 = f32[2,16]{0,1} copy(%k)
  %dynamic-update-slice_fusion = f32[2,16]{1,0} fusion(%k.2, %x), kind=kLoop, calls=%sums
  %t.2 = (s32[], bf16[8,4]{1,0}) tuple(%i, %w)
  %while.2 = (s32[], bf16[8,4]{1,0}) while(%t.2), condition=%yes, body=%again, backend_config={"known_trip_count":{"n":"3"}}
  %all = f32[32]{0} all-gather(%fusion.2), dimensions={0}, metadata={op_name="jit(f)/all_gather"}
  %wider = f64[8]{0} convert(%fusion.2)
  ROOT %r = (s32[], bf16[8,4]{1,0}, f32[2,16]{1,0}, f32[8]{0}) tuple(%i, %w, %dynamic-update-slice_fusion, %fusion.2)
}

ENTRY %main (a.1: bf16[4,8], a.2: f32[2,16], a.3: f32[8]) -> f32[8] {
  %a.1 = bf16[4,8]{1,0} parameter(0), metadata={op_name="params[\\'layers\\'][0][\\'out\\']"}
  %a.2 = f32[2,16]{1,0} parameter(1), metadata={op_name="state.cache.k[0]"}
  %a.3 = f32[8]{0} parameter(2), metadata={op_name="x"}
  %zero = s32[] constant(0)
  %turned.2 = bf16[8,4]{1,0} transpose(%a.1), dimensions={1,0}
  %t.1 = (s32[], bf16[8,4]{1,0}, f32[2,16]{1,0}, f32[8]{0}) tuple(%zero, %turned.2, %a.2, %a.3)
  %while.1 = (s32[], bf16[8,4]{1,0}, f32[2,16]{1,0}, f32[8]{0}) while(%t.1), condition=%yes, body=%body
  ROOT %out = f32[8]{0} get-tuple-element(%while.1), index=3
}
"""
WEIGHT = "params['layers'][0]['out']"


def test_a_loop_s_moves_are_named_with_where_they_come_from():
    [loop] = compiled_text.Program(TEXT).loops()
    assert loop.reads == {"weights": 2 * 8 * 4, "cache": 4 * 2 * 16}
    assert [(move.kind, move.what, move.result, move.opcode, move.bytes) for move in loop.moves] == [
        ("weights", WEIGHT, "bf16[8,4]", "copy", 3 * 64),  # of a loop within, three times
        ("weights", WEIGHT, "f32[4,8]", "convert", 128),
        ("cache", "state.cache.k[0]", "f32[2,16]", "copy", 128),
        ("gathered", "jit(f)/all_gather", "f32[32]", "all-gather", 128),
        ("other", "", "f64[8]", "convert", 64),  # not the copy to the scratchpad S(1)
    ]
    assert loop.moved("weights") == 3 * 64 + 128
    assert loop.writes == 4 * 8  # the sums: an update in place writes no array, a bitcast nothing
    assert loop.cycles == 70


def test_what_moves_once_is_not_in_the_loop():
    [move] = compiled_text.Program(TEXT).once()
    assert (move.kind, move.what, move.opcode, move.bytes) == ("weights", WEIGHT, "transpose", 64)


def test_arrays_of_the_cache_s_size_are_the_cache_whoever_made_them():
    text = TEXT.replace("state.cache.k[0]", "something")
    assert compiled_text.Program(text).loops()[0].moved("cache") == 0
    assert compiled_text.Program(text, [32]).loops()[0].moved("cache") == 128


def test_another_text_is_refused():
    with pytest.raises(ValueError, match="no computation of it is marked ENTRY"):
        compiled_text.Program("module @jit_f {\n}\n")
