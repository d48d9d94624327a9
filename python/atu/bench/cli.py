"""`atu bench`: the op benchmarks. They come with the wheel because users time the kernels on machines of their own."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from .measure import Plan
    from .micro import Custom

OPS = ("upfirdn2d", "bias_act", "modulated_conv2d", "param_penalty")
DTYPES = ("float32", "float64", "float16", "bfloat16")
BOTH = ("float32", "bfloat16")
FILE = click.Path(path_type=Path, dir_okay=False)


def _shape(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    parts = value.split("x")
    if not all(part.isdigit() and int(part) for part in parts):
        raise click.BadParameter(f"expected sizes like 8x64x128x128, got {value!r}", ctx, param)
    return tuple(map(int, parts))


def on_machine(function: Callable) -> Callable:
    """Add the options of every benchmark: where it runs, how long, and what becomes of its numbers.

    The command gets them as keyword arguments of `measure`, in one dict.
    """

    @functools.wraps(function)
    def command(device, dtypes, threads, seconds, quick, save_path, compare_path, plot_path, **rest: Any) -> None:
        measured = dict(device=device, dtypes=dtypes or BOTH, threads=threads, seconds=seconds, quick=quick)
        function({**measured, "save_path": save_path, "compare_path": compare_path, "plot_path": plot_path}, **rest)

    options = [
        click.option("--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1."),
        click.option(
            "--dtype",
            "dtypes",
            multiple=True,
            type=click.Choice(DTYPES),
            help="Of the tensors; may be repeated. float32 and bfloat16 beside each other when not given.",
        ),
        click.option("--threads", type=click.IntRange(1), help="CPU threads; torch's own number when not given."),
        click.option(
            "--seconds", default=0.5, show_default=True, type=click.FloatRange(0.001), help="A case and implementation."
        ),
        click.option("--quick", is_flag=True, help="Tiny shapes, to see that it runs; the numbers mean nothing."),
        click.option(
            "--save", "save_path", type=FILE, help="Write all numbers (JSON), over those of an earlier bench."
        ),
        click.option("--compare", "compare_path", type=FILE, help="Compare with a file of --save."),
        click.option("--plot", "plot_path", type=FILE, help="Draw a picture (png, svg)."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def measure(
    what: str,
    work: Callable[[Plan, dict[str, dict[str, float]], Callable[[str], None]], dict[str, Any]],
    *,
    device: str,
    dtypes: tuple[str, ...],
    threads: int | None,
    seconds: float,
    quick: bool,
    save_path: Path | None,
    compare_path: Path | None,
    plot_path: Path | None,
) -> None:
    """Run one benchmark, show, save, plot and compare its numbers.

    work: (plan, rates of this machine by dtype, where progress is said) -> its part of the result.
    """
    import torch

    from ..support.environment import keep_freed_memory, machine, versions
    from . import output
    from .limits import machine_rates
    from .measure import Plan

    keep_freed_memory()  # as the other commands do; for every implementation alike
    _check(device, dtypes)
    before = None if compare_path is None else output.read(compare_path)
    _check_files(save_path, plot_path)
    threads = threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    plan = Plan(0.002 if quick else seconds, 2 if quick else 7, threads, device)
    _say("limits of this machine")
    rates = {name: machine_rates(plan, getattr(torch, name), quick) for name in dtypes}
    found: dict[str, Any] = dict(what=what, machine=machine(device), versions=versions(), threads=threads)
    found.update(device=device, dtype=dtypes[0], dtypes=list(dtypes), quick=quick)
    found.update(limits=rates[dtypes[0]], limits_of=rates)
    found.update(work(plan, rates, _say))
    output.show(found)
    if save_path is not None:
        from ..support.files import write_json

        write_json(save_path, found)
    if plot_path is not None:
        click.echo(str(output.plot(found, plot_path)))
    if before is not None and output.compare(before, found) and not quick:
        raise click.exceptions.Exit(1)


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.command("bench")
@click.option("--op", "ops", multiple=True, type=click.Choice(OPS), help="Only this op; may be repeated.")
@click.option("--shape", metavar="NxCxHxW", callback=_shape, help="One shape of yours, of one --op.")
@click.option("--up", default=1, type=click.IntRange(1), help="With --shape: upsampling factor.")
@click.option("--down", default=1, type=click.IntRange(1), help="With --shape: downsampling factor.")
@click.option("--out-channels", type=click.IntRange(1), help="With --shape, of modulated_conv2d; C when not given.")
@click.option("--channels-last", is_flag=True, help="With --shape: images of that layout.")
@click.option("--compile/--no-compile", default=True, show_default=True, help="Time torch.compile of the reference.")
@click.option("--growth/--no-growth", default=True, show_default=True, help="Fit growth with size, batch and threads.")
@on_machine
def bench(measured, ops, shape, up, down, out_channels, channels_last, compile, growth) -> None:
    """Time the ops against peers and this machine's limits.

    Times are medians of turns taken by all implementations in one run: ours, the plain-torch reference, torch.compile
    of it, and the nearest that torch has. Compare ratios, not times, between machines. With --compare, the exit code is
    1 when a case lost a quarter against its limit or reference, in the median and in the fastest turn; never with
    --quick.
    """
    custom = _custom(ops, shape, up, down, out_channels, channels_last)
    ops = ops or OPS

    def work(plan: Plan, rates: dict[str, dict[str, float]], say: Callable[[str], None]) -> dict[str, Any]:
        import torch

        from .growth import run_growth
        from .micro import cases
        from .ops import run_ops

        kinds = [getattr(torch, name) for name in rates]
        limits = dict(zip(kinds, rates.values(), strict=True))
        made = cases(ops, kinds, plan.device, measured["quick"], custom)
        found: dict[str, Any] = dict(rows=run_ops(made, plan, limits, compile and not measured["quick"], say))
        if growth and not shape:
            found["growth"] = run_growth(ops, plan, kinds[0], measured["quick"], say)
        return found

    measure("ops", work, **measured)


def _custom(ops, shape, up, down, out_channels, channels_last) -> Custom | None:
    from .micro import Custom

    if shape is None:
        if up > 1 or down > 1 or out_channels is not None or channels_last:
            raise click.UsageError("--up, --down, --out-channels and --channels-last are of --shape")
        return None
    if len(ops) != 1:
        raise click.UsageError("--shape needs one --op")
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
