"""`generate` as a command: one prompt or a file of them, on one device, several, or several processes."""

import argparse
import dataclasses
import datetime
import logging
import sys
from collections.abc import Mapping
from typing import Any

import jax

from jax_probe_mtp.commands import draft_options, model_defaults, options
from jax_probe_mtp.commands.flags import devices, penalties
from jax_probe_mtp.commands.kept_costs import kept_costs
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import draft_name
from jax_probe_mtp.errors import count, local_file, positive
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.remote.address import STREAM, file_address_or_stream
from jax_probe_mtp.files.remote.places import Places
from jax_probe_mtp.files.remote.working_copy import WorkingCopy
from jax_probe_mtp.files.run_file import COSTS, Begun, begun, read_run, run_path
from jax_probe_mtp.files.whole_files import check_files
from jax_probe_mtp.generation.answers import Stats
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.generation.groups import Groups
from jax_probe_mtp.jobs import memory, processes
from jax_probe_mtp.jobs.job import Job, files_of
from jax_probe_mtp.jobs.made_by import made_by
from jax_probe_mtp.jobs.stats_file import StatsFile, peak_host_bytes
from jax_probe_mtp.jobs.survey import check_samples, survey
from jax_probe_mtp.jobs.warm import warm_path
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model.fingerprint import local_weights_digest, text_identity
from jax_probe_mtp.model.mesh import check_mesh
from jax_probe_mtp.model.params import format_name

OF_INPUT = (
    "ordered",
    "distributed",
    "logprobs",
    "prompt_logprobs",
    "redo_changed",
    "retry_errors",
    "limit",
    "continue_final_message",
)
OF_KEPT = ("redo_changed", "retry_errors", "distributed")  # several processes write a file each
OF_PROMPT = ("stream",)
LOG_LEVELS = ("debug", "info", "warning", "error")


def add_command(commands: Any) -> None:
    """Adds the command to the parser's."""
    generate = commands.add_parser("generate", allow_abbrev=False, help="answer a prompt, or a file of prompts")
    options.add_prompts(generate)
    generate.add_argument(
        "--output",
        type=file_address_or_stream,
        metavar="G.jsonl",
        help="answers to --input: a file or an address, gone on with if given again, or - for stdout "
        "(default: no file, --prompt is answered on stdout)",
    )
    generate.add_argument(
        "--redo-changed",
        action="store_true",
        help="answer records anew that are not what they were when --output was written (default: they are refused)",
    )
    generate.add_argument(
        "--retry-errors", action="store_true", help="answer records anew that could not run (default: they stay errors)"
    )
    generate.add_argument(
        "--limit", type=positive, metavar="N", help="answer the first N lines of --input alone (default: all)"
    )
    generate.add_argument("--ordered", action="store_true", help="answers in the order of the prompts")
    generate.add_argument(
        "--logprobs",
        type=count,
        nargs="?",
        const=0,
        metavar="K",
        help="log-probability of each token in the answers, and with K of the K most likely ones in its place",
    )
    generate.add_argument(
        "--prompt-logprobs", action="store_true", help="log-probabilities of the prompts' tokens too; needs --logprobs"
    )
    generate.add_argument("--stream", action="store_true", help="show the answer to --prompt as it grows")
    generate.add_argument("--stats", action="store_true", help="tau, calls and tokens/s on stderr")
    generate.add_argument(
        "--stats-json",
        type=local_file,
        metavar="F.json",
        help="the same and more as a file, written anew every few seconds of a run (default: no file)",
    )
    generate.add_argument(
        "--log-level", choices=LOG_LEVELS, default="info", help="of the lines on stderr (default: %(default)s)"
    )
    devices.add_devices(generate)
    options.add_model(generate)
    draft_options.add_draft(generate)
    options.add_sampling(generate)
    penalties.add_penalties(generate)
    model_defaults.add_flag(generate)
    options.add_stream(generate)
    options.add_exact(generate)
    generate.set_defaults(command=_generate)


def _generate(args: argparse.Namespace) -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("jax_probe_mtp").setLevel(args.log_level.upper())
    if bool(args.input) != bool(args.output):
        raise ValueError("--input and --output go together: a file of prompts in, a file of answers out.")
    for option in OF_INPUT if args.prompt is not None else OF_PROMPT:
        value = getattr(args, option)
        if value is not None and value is not False:  # 0 is a value: --logprobs
            flag = option.replace("_", "-")
            raise ValueError(f"--{flag} is for {'--input' if args.prompt is not None else '--prompt'}; leave it out.")
    for option in OF_KEPT if args.output == STREAM else ():
        if getattr(args, option):
            raise ValueError(
                f"--{option.replace('_', '-')} needs an --output that is kept, which - is not; leave it out."
            )
    devices.join(args)
    with Places() as places:
        with processes.in_step():
            args.input = places.read(args.input)
            args.output, copy = places.write(args.output, lambda path: files_of(processes.own_path(path)))
            written = {"--output": args.output, "--stats-json": args.stats_json}
            beside = {"the file beside --output": warm_path(args.output)} if args.output else {}
            check_files(written | beside, [args.input, args.masks, *([run_path(args.output)] if args.output else [])])
        return _generate_file(args, copy) if args.input else _generate_one(args)


def _generate_one(args: argparse.Namespace) -> int:
    masks, settings = draft_options.MasksFlags(args), options.settings(args)
    source = masks.put_into(draft_options.draft_source(args))
    draft_options.check_choice(source, settings)
    opened = options.open_model(args)
    settings = _with_defaults(args, opened, settings)
    encode = options.encoder(args, opened.tokenizer)
    records = options.read_records(args)
    for record in records:
        check_samples(record, settings)
    if args.stream and len(records) > 1:
        raise ValueError(
            f"--stream shows one answer as it grows, but --n {args.n} asks for several; leave one of them out."
        )
    prompts = [encode(record) for record in records]
    mesh = devices.mesh_of(args)
    if mesh is not None:
        check_mesh(opened.config, settings.batch_size, *mesh.devices.shape)
    draft_options.check_own(source, opened.config)
    checkpoint = opened.load(mesh)
    masks.check_model(checkpoint)
    is_sampled = any(prompt.of("temperature", settings) > 0 for prompt in prompts)
    costs = kept_costs(checkpoint, settings, is_sampled=is_sampled) if source.sizes else None
    decoder = Decoder(checkpoint, source, Groups(checkpoint, source, costs), shared=masks.shared(source))
    if args.stream:
        if args.calls_per_chunk is None:
            settings = dataclasses.replace(settings, calls_per_chunk=1)
        for piece in decoder.stream_text(prompts[0], settings):
            print(piece, end="", flush=True)
        print()
    else:
        for number, generation in enumerate(decoder.run(prompts, settings), start=1):
            if len(prompts) > 1:
                print(f"--- answer {number} of {len(prompts)}")
            print(generation.text)
    _say_stats(args, decoder.stats, source)
    _stats_file(args, source, {}).write(decoder.stats, is_last=True)
    return 0


def _generate_file(args: argparse.Namespace, copy: WorkingCopy) -> int:
    with processes.in_step():
        masks, settings = draft_options.MasksFlags(args), options.settings(args)
        source = masks.put_into(draft_options.draft_source(args))
        draft_options.check_choice(source, settings)
        before = begun(processes.own_path(args.output))
    is_by_line = processes.largest(before is not None and before.is_by_line) == 1
    at = processes.earliest(before.at if before else datetime.datetime.now())
    with processes.in_step():
        prompts = PromptFile(args.input, names_by_line=is_by_line, num_samples=args.n or 1)
    if prompts.unused_fields:
        logging.getLogger("jax_probe_mtp").info("%s: not read: %s", args.input, ", ".join(prompts.unused_fields))
    if args.distributed:
        flags = {
            f"--{name.replace('_', '-')}": value for name, value in vars(args).items() if name not in devices.MAY_DIFFER
        }
        processes.check_same({str(args.input): prompts.digest(), "--masks": masks.digest, **flags})
    with processes.in_step():
        mesh = devices.mesh_of(args)
        data, tensor = (1, 1) if mesh is None else mesh.devices.shape
        opened = options.open_model(args)
        check_mesh(opened.config, settings.batch_size, data, tensor)
    settings = _with_defaults(args, opened, settings)
    if args.distributed:
        facts = {"model": opened.config, "eos_token_ids": opened.eos_token_ids, "dtype": opened.number_format}
        facts["settings"] = settings  # which a model's own defaults may have changed
        processes.check_same(facts | text_identity(opened.tokenizer))
    encode = dataclasses.replace(options.encoder(args, opened.tokenizer), date=at)
    with processes.in_step():
        found = survey(prompts, opened.config, encode, settings)
        capacity = found.capacity
        # More rows than prompts would be idle to the end. An exact job keeps its rows when it goes on without a limit.
        num_wanted = prompts.num_records_of((not settings.is_exact and args.limit) or prompts.num_lines)
        most = -(-num_wanted // data) * data
        settings = dataclasses.replace(settings, batch_size=min(settings.batch_size, most), capacity=capacity)
        settings.check(opened.config, source, num_shards=data)
        draft_options.check_own(source, opened.config)
        needed = memory.estimate(
            opened.config,
            source,
            dtype=opened.dtype,
            weights=opened.weights,
            batch_size=settings.batch_size,
            capacity=capacity,
            num_top=settings.top_logprobs,
            is_penalized=settings.is_penalized or prompts.is_penalized,
            prefix_slots=found.prefixes.most_slots,
            data=data,
            tensor=tensor,
        )
        logging.getLogger("jax_probe_mtp").debug("%s; capacity %d", needed, capacity)
        memory.check(needed, data)
        copy.check_writable()
        checkpoint = opened.load(mesh)
        masks.check_model(checkpoint)
    if args.distributed:
        parts, digest = local_weights_digest(checkpoint.params)
        processes.check_same({"weights": digest}, among=parts)
    run = made_by(
        checkpoint,
        settings,
        Begun(at, is_by_line),
        encode,
        draft=draft_name(source),
        masks=masks.digest,
    )
    costs = None
    if source.sizes:
        is_sampled = max(settings.temperature, prompts.max_temperature or 0.0) > 0
        said = read_run(args.output).get(COSTS) if before else None
        costs = kept_costs(
            checkpoint,
            settings,
            is_sampled=is_sampled,
            is_penalized=prompts.is_penalized,
            beside=None if said is None else (run_path(args.output), said),
        )
    job = Job(
        prompts,
        args.output,
        run,
        checkpoint,
        source,
        settings,
        encode=encode,
        survey=found,
        is_ordered=args.ordered,
        redoes_changed=args.redo_changed,
        retries_errors=args.retry_errors,
        limit=args.limit,
        shared=masks.shared(source),
        says=masks.said if source.needs_shared else {},
        watch=lambda: live.write(job.stats),
        copy=copy,
        costs=costs,
    )
    more = {"run": run, "capacity": capacity, "batch_size": settings.batch_size, "mesh": args.mesh}
    live = _stats_file(args, source, more, num_devices=data * tensor)
    status = job.run()
    live.write(job.stats, is_last=True)
    _say_stats(args, job.stats, source)
    return status


def _with_defaults(args: argparse.Namespace, opened: Any, settings: Settings) -> Settings:
    """Applies the model's defaults where that is asked for, and says which ones are not applied."""
    settings = model_defaults.settings_of(args, opened.generation_defaults, settings)
    if found := model_defaults.not_applied(opened.generation_defaults, settings):
        logging.getLogger("jax_probe_mtp").info(model_defaults.say_not_applied(opened.name, found))
    return settings


def _say_stats(args: argparse.Namespace, stats: Stats, source: DraftSource) -> None:
    if args.stats:
        rows = f"{'at most ' * bool(source.sizes)}{source.num_rows} rows a call on {jax.devices()[0].device_kind}"
        print(f"{stats}; {rows}; host memory {peak_host_bytes() / 2**30:.2f} GiB at most", file=sys.stderr)


def _stats_file(
    args: argparse.Namespace, source: DraftSource, more: Mapping[str, Any], *, num_devices: int = 1
) -> StatsFile:
    facts = {"rows_per_call": source.num_rows, **more}
    facts["environment"] = environment(format_name(args.dtype or "as stored", args.weights))
    return StatsFile(args.stats_json, facts, num_devices)
