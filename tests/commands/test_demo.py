"""The demo, without the network: it fetches once, answers, and compares."""

from pathlib import Path

from checkpoints import make_checkpoint, write_folder

from jax_probe_mtp.commands import demo, demo_model


def test_demo_fetches_once_and_shows_the_proof(run, tiny, tmp_path, monkeypatch):
    fetched = []

    def convert(source, destination):
        fetched.append(source)
        write_folder(Path(destination), make_checkpoint(tiny))

    monkeypatch.setattr(demo_model, "fetch", lambda folder: folder / "fetched.gguf")
    monkeypatch.setattr("checkpoints_convert.convert_gguf", convert)
    code, out, err = run("demo")
    assert code == 0
    assert out.endswith("2 same, 0 tie, 0 diverged\n")
    assert all(f"> {prompt}\n" in out for prompt in demo.DEMO_PROMPTS)
    assert "fetching" in err
    assert fetched == [tmp_path / "cache" / "jax_probe_mtp" / "fetched.gguf"]
    code, again, err = run("demo")
    assert (code, again) == (0, out)
    assert "fetching" not in err
    assert len(fetched) == 1
