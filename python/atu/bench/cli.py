"""`atu bench [ops|step|job|marks]`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .micro import Custom

WHAT = ("ops", "step", "job", "marks")
OPS = ("upfirdn2d", "bias_act", "modulated_conv2d", "param_penalty")
DTYPES = ("float32", "float64", "float16", "bfloat16")
BOTH = ("float32", "bfloat16")
FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


def _shape(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = value.split("x")
    if not all(part.isdigit() and int(part) for part in parts):
        raise click.BadParameter(f"expected sizes like 8x64x128x128, got {value!r}", ctx, param)
    return tuple(map(int, parts))


@click.command("bench")
@click.argument("what", type=click.Choice(WHAT), default="ops")
@click.option("--op", "ops", multiple=True, type=click.Choice(OPS), help="Only this op; may be repeated.")
@click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1.")
@click.option(
    "--dtype",
    "dtypes",
    multiple=True,
    type=click.Choice(DTYPES),
    help="Of the ops' tensors; may be repeated. float32 and bfloat16 beside each other when not given.",
)
@click.option("--shape", metavar="NxCxHxW", callback=_shape, help="One shape of yours, of one --op.")
@click.option("--up", default=1, type=click.IntRange(1), help="With --shape: upsampling factor.")
@click.option("--down", default=1, type=click.IntRange(1), help="With --shape: downsampling factor.")
@click.option("--out-channels", type=click.IntRange(1), help="With --shape, of modulated_conv2d; C when not given.")
@click.option("--channels-last", is_flag=True, help="With --shape: images of that layout.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads; torch's own number when not given.")
@click.option("--batch", default=32, show_default=True, type=click.IntRange(2), help="Of the step.")
@click.option(
    "--gan",
    default="mnist",
    show_default=True,
    metavar="NAME",
    help="Of the step: mnist, whole and in parts; animals, whole; or 256 (any resolution, untrained), whole.",
)
@click.option("--class", "digit", default="8", show_default=True, metavar="K", help="Digit that the job unlearns.")
@click.option("--compile/--no-compile", default=True, show_default=True, help="Time torch.compile of the reference.")
@click.option("--growth/--no-growth", default=True, show_default=True, help="Fit growth with size, batch and threads.")
@click.option(
    "--seconds", default=0.5, show_default=True, type=click.FloatRange(0.001), help="A case and implementation."
)
@click.option("--out", type=FOLDER, help="Of marks: folder for its parts; the same command goes on from there.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Of marks: how often it looks.")
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(0), help="Of marks: rounds of unlearning.")
@click.option("--share", "shares", multiple=True, metavar="SHARE", help="Of marks: 3, 10 or 30 (%); all if not given.")
@click.option(
    "--order", "orders", multiple=True, metavar="ORDER", help="Of marks: suggestions, random; both if not given."
)
@click.option("--quick", is_flag=True, help="Tiny shapes, to see that it runs; the numbers mean nothing.")
@click.option("--save", "save_path", type=FILE, help="Write all numbers (JSON), over those of an earlier bench.")
@click.option("--json", "json_path", type=FILE, hidden=True)  # the former spelling of --save
@click.option("--compare", "compare_path", type=FILE, help="Compare with a file of --save.")
@click.option("--plot", "plot_path", type=FILE, help="Draw a picture (png, svg).")
def bench(
    what,
    ops,
    device,
    dtypes,
    shape,
    up,
    down,
    out_channels,
    channels_last,
    threads,
    batch,
    gan,
    digit,
    compile,
    growth,
    seconds,
    out,
    seeds,
    rounds,
    shares,
    orders,
    quick,
    save_path,
    json_path,
    compare_path,
    plot_path,
) -> None:
    """Time the ops, a step, or an unlearning; or count what the labelling page takes.

    All against peers and this machine's limits. Times are medians of turns taken by all implementations in one run:
    ours, the plain-torch reference, torch.compile of it, and the nearest that torch has. Compare ratios, not times,
    between machines. With --compare, the exit code is 1 when a case lost a quarter against its limit or reference, in
    the median and in the fastest turn; never with --quick.

    marks: a simulated user of atu label looks for what is unwanted, with the page's suggestions and in random order,
    and unlearns it in rounds; DIR/marks.md is its table.

    WHAT: ops, step, job or marks.
    """
    import torch

    from ..support.environment import keep_freed_memory
    from . import output

    if what == "marks":
        _marks(out, seeds, rounds, shares, orders, threads, quick)
        return
    keep_freed_memory()  # as the other commands do; for every implementation alike
    dtypes = dtypes or BOTH
    _check(device, dtypes)
    custom = _custom(what, ops, shape, up, down, out_channels, channels_last)
    before = None if compare_path is None else output.read(compare_path)
    save_path = save_path or json_path
    _check_files(save_path, plot_path)
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    growth = growth and not shape
    found = _run(what, ops or OPS, device, dtypes, custom, threads, batch, gan, digit, compile, growth, seconds, quick)
    output.show(found)
    if save_path is not None:
        from ..support.files import write_json

        write_json(save_path, found)
    if plot_path is not None:
        click.echo(str(output.plot(found, plot_path)))
    if before is not None and output.compare(before, found) and not quick:
        raise click.exceptions.Exit(1)


def _marks(
    out: Path | None,
    seeds: int,
    rounds: int,
    shares: tuple[str, ...],
    orders: tuple[str, ...],
    threads: int | None,
    quick: bool,
) -> None:
    import os

    import torch

    from .marks import FEATURES, ORDERS, run_marks

    if out is None:
        raise click.UsageError("atu bench marks needs --out DIR")
    known = {feature.share.split()[0]: feature.share for feature in FEATURES}
    for option, given, expected in (("share", shares, tuple(known)), ("order", orders, ORDERS)):
        unknown = [value for value in given if value not in expected]
        if unknown:
            raise click.UsageError(f"--{option}: expected one of {', '.join(expected)}, got {unknown[0]}")
    if threads is not None:
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)  # of the runs, which are processes of their own
    only = [known[share] for share in shares]
    run_marks(out, quick, seeds, rounds, only, lambda text: click.echo(text, err=True), orders=orders)
    click.echo((out / "marks.md").read_text(encoding="utf-8"))


def _custom(what, ops, shape, up, down, out_channels, channels_last) -> Custom | None:
    from .micro import Custom

    if shape is None:
        if up > 1 or down > 1 or out_channels is not None or channels_last:
            raise click.UsageError("--up, --down, --out-channels and --channels-last are of --shape")
        return None
    if what != "ops" or len(ops) != 1:
        raise click.UsageError("--shape needs one --op of atu bench ops")
    return Custom(shape, up, down, out_channels, channels_last)


def _check(device: str, dtypes: tuple[str, ...]) -> None:
    import torch

    from atu_ext import _native

    try:
        kind = torch.device(device).type
    except RuntimeError:  # no name of torch's
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise click.BadParameter(f"expected cpu or cuda, got {device!r}", param_hint="--device")
    if kind == "cuda" and not torch.cuda.is_available():
        raise click.BadParameter("torch sees no CUDA device", param_hint="--device")
    if kind == "cpu" and "float16" in dtypes:
        raise click.BadParameter("expected float32, float64 or bfloat16 on the CPU, got float16", param_hint="--dtype")
    if len(set(dtypes)) < len(dtypes):
        raise click.BadParameter(f"expected different ones, got {', '.join(dtypes)}", param_hint="--dtype")
    if _native._C is None:
        raise ValueError(str(_native.error))


def _check_files(save_path: Path | None, plot_path: Path | None) -> None:
    """Raise ValueError where the results could not be written, once they are measured, or would replace something
    else."""
    from . import output

    for name, path in (("save", save_path), ("plot", plot_path)):
        if path is None:
            continue
        try:
            with tempfile.TemporaryFile(dir=next(folder for folder in path.absolute().parents if folder.exists())):
                pass
        except OSError as error:
            raise ValueError(f"{name}: {path} cannot be written ({error.strerror})") from error
    if save_path is not None and save_path.exists():
        output.read(save_path)
    if plot_path is not None:
        _check_ending(plot_path)


def _check_ending(path: Path) -> None:
    """Raise ValueError for a picture of a kind that matplotlib does not write."""
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if (path.suffix.lstrip(".").lower() or "png") not in known:
        raise ValueError(f"plot: expected a file ending in one of {', '.join(sorted(known))}, got {path}")


def _run(
    what, ops, device, dtypes, custom, threads, batch, gan, digit, compile, growth, seconds, quick
) -> dict[str, Any]:
    import torch

    from ..support.environment import machine, versions
    from .limits import machine_rates
    from .measure import Plan

    torch.manual_seed(0)
    plan = Plan(0.002 if quick else seconds, 2 if quick else 7, threads, device)
    compile = compile and not quick

    def say(text: str) -> None:
        click.echo(text, err=True)

    found: dict[str, Any] = dict(what=what, machine=machine(device), versions=versions(), threads=threads)
    found.update(device=device, dtype=dtypes[0], dtypes=list(dtypes), quick=quick)
    if what == "job":
        from .job import run_job

        return {**found, **run_job(device, quick, digit, dtypes, say)}
    say("limits of this machine")
    rates = {name: machine_rates(plan, getattr(torch, name), quick) for name in dtypes}
    found.update(limits=rates[dtypes[0]], limits_of=rates)
    if what == "step":
        from .step import BRIEF, BRIEFEST, gan_of, run_step

        given = None if gan == "mnist" else gan_of(gan)
        brief = {"mnist": None, "animals": BRIEF}.get(gan, BRIEFEST)
        return {**found, **run_step(plan, batch, compile, quick, say, dtypes, given, brief)}
    from .growth import run_growth
    from .micro import cases
    from .ops import run_ops

    kinds = [getattr(torch, name) for name in dtypes]
    limits = dict(zip(kinds, rates.values(), strict=True))
    found["rows"] = run_ops(cases(ops, kinds, device, quick, custom), plan, limits, compile, say)
    if growth:
        found["growth"] = run_growth(ops, plan, kinds[0], quick, say)
    return found
