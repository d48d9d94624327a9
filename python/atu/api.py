"""The door: `unlearn(gan, negatives)`, its two stages on their own, and the closed-form baseline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .check_gan import check_adapted
from .config import Config
from .data.samples import Samples, TensorSamples
from .gan import GAN
from .inputs import Request
from .judging.rule import Rule
from .methods.adapt_then_unlearn.adapt import adapt_all
from .methods.adapt_then_unlearn.repel import repel_gan
from .methods.extrapolate import extrapolated
from .methods.registry import METHODS, Outcome
from .run import Job, started
from .support.files import write_json
from .support.seeding import Stream, stream_seed

if TYPE_CHECKING:
    from .evaluation.evaluate import Real


@dataclass(repr=False)
class Result:
    """What unlearning gives.

    gan: the unlearned pair; its `generator_ema` is the kept one. adapted: state dicts of the stage-1 generators.
    history: one dict a logged step (stage, step, seconds, losses, distance, negative_rate ...). decisions: what the run
    chose and why. seconds: of training. out: the run folder, if there is one. seed: of the run. original: the GAN that
    was given. rule: what answered during the run, the oracle or the probe. negatives: what the run was made
    with, those of earlier rounds among them. positives: likewise, where some were given. previous: the GAN that the run
    went on from, where that is not the original.
    """

    gan: GAN
    adapted: list[dict[str, Tensor]]
    history: list[dict[str, Any]]
    decisions: dict[str, Any]
    seconds: float
    config: Config
    out: Path | None
    seed: int
    original: GAN
    rule: Rule
    negatives: Samples
    positives: Samples | None = None
    previous: GAN | None = None

    def __repr__(self) -> str:
        """Short: what was done and what came of it, and no weights."""
        told = self.decisions
        parts = [f"method={told.get('method')!r}"]
        if "negative_share" in told:
            shares = [told["negative_share"], told.get("negative_rate")]
            rates = " -> ".join("?" if rate is None else f"{100 * rate:.1f} %" for rate in shares)
            parts.append(f"negatives {rates} by the {told.get('answered_by')}")
        parts += [f"{len(self.adapted)} adapted", f"{len(self.history)} rows of history", f"{self.seconds:.0f} s"]
        return f"Result({', '.join(parts)}, out={None if self.out is None else str(self.out)!r})"

    @property
    def generator(self) -> nn.Module:
        """The unlearned EMA generator in eval mode, of the class that was given."""
        return self.gan.sampling_generator.eval()

    def save(self, path: str | Path) -> Path:
        """Write the unlearned GAN as a checkpoint; see `GAN.save`."""
        return self.gan.save(path)

    def report(
        self,
        out: str | Path | None = None,
        judge: Any = None,
        classes: Iterable[int | str] = (),
        real: Real | None = None,
        *,
        n: int = 10_000,
        subject: str = "what the negatives show",
        command: str = "atu_ext.unlearn(...)",
    ) -> dict[str, Any]:
        """Evaluate on n fixed latents that the run has not seen, and write OUT/report.json and OUT/report.html.

        Args:
            out: folder; the run folder when not given.
            judge, classes, real, n: as of `atu.evaluation.evaluate.evaluate`. Without a judge, what answered during the
                run judges, and the report says so.
            subject: what was unlearned, in words ("the digit 8"). command: how to run it again.

        Returns:
            The content of report.json.

        Raises:
            ValueError: there is no folder to write to; or as of `evaluate`.
        """
        from .evaluation.evaluate import evaluate
        from .report import report

        folder = self.out if out is None else Path(out)
        if folder is None:
            raise ValueError("out: expected a folder for the report, as this run had none")
        notes, answered = [], judge is None
        if judge is None:
            judge, answers = self.rule, self.decisions.get("answered_by")
            notes = [f"The {answers} that answered during the run also judges the outcome, on other latents."]
        start = time.monotonic()
        evaluation = evaluate(
            self.original,
            self.gan,
            judge,
            classes,
            real,
            others=other_generators(self.original, self),
            answered=answered,
            n=n,
            seed=stream_seed(self.seed, Stream.EVALUATION),
        )
        context = report.Context(
            subject=subject,
            seconds={**stage_seconds(self), "evaluate": time.monotonic() - start},
            command=command,
            config=self.config.to_dict(),
            seed=self.seed,
            device=str(self.original.device),
            history=self.history,
            decisions=self.decisions,
            notes=notes,
            negatives=self.negatives.tensor if isinstance(self.negatives, TensorSamples) else None,
        )
        return report.write(folder, evaluation, context)


def stage_seconds(result: Result) -> dict[str, float]:
    """Seconds of each stage, from the history, so that a resumed run counts in full."""
    seconds: dict[str, float] = {}
    for row in result.history:
        seconds[row["stage"]] = max(seconds.get(row["stage"], 0.0), row["seconds"])
    return {"prepare": max(result.seconds - sum(seconds.values()), 0.0), **seconds}


def other_generators(gan: GAN, result: Result) -> dict[str, nn.Module]:
    """What a report compares beside the original and the outcome: where this round began, and the adapted generator."""
    before = {} if result.previous is None else {"previous": result.previous.sampling_generator}
    return {**before, **adapted_generators(gan, result)}


def adapted_generators(gan: GAN, result: Result) -> dict[str, nn.Module]:
    """The first adapted generator, under its name in the report; nothing for methods that adapt none."""
    if not result.adapted:
        return {}
    twin = gan.copy().generator
    twin.load_state_dict(result.adapted[0])
    return {"adapted": twin}


def unlearn(
    gan: GAN,
    negatives: Any,
    positives: Any = None,
    is_negative: Rule | Callable[[Tensor], Tensor] | str | None = None,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    method: str | None = None,
    compat: str | None = None,
    resize: bool = False,
    precision: str | None = None,
    from_run: str | Path | None = None,
) -> Result:
    """Make a GAN forget what the negatives show: adapt to them, then retrain away from the adapted weights.

    Source: Tiwary et al., "Adapt then Unlearn" (arXiv 2309.14054). `gan` itself is not changed.

    Args:
        gan: pretrained pair.
        negatives: samples that show what is unwanted: a folder of images, or one that `atu label` wrote (its good/ are
            then the positives), or its labels.json alone; a list of image files or of Pillow's images, a tensor or
            ndarray [N, ...] (floats in gan.image_range, or uint8 images), a map-style Dataset or a DataLoader (read
            once, whole). A dozen work; a hundred work better. For a conditional GAN also a pair (samples, labels),
            labels an index for all of them or int64 [N]: labels that are not given are drawn as the GAN draws them.
        positives: samples that are wanted, likewise. Generated and filtered when not given; where they are fewer than
            `feedback.least_positives`, joined by generated ones.
        is_negative: oracle, samples [N, ...] (on the GAN's device, in its range) -> bool tensor [N]. Filters the
            generated positives and scores the run; a probe on the discriminator's features stands in when not given.
            Or a spec of one, such as "net.onnx?class=3" (`atu.judging.find`).
        config: `Config`, dict of its fields, or path of a TOML file.
        out: run folder; a killed run is resumed by the same call.
        seed: of everything random. On the CPU the result is the same bit for bit for the same number of threads.
        device: where to train; the GAN's own device when not given.
        method: one of `atu.presets.METHODS`; docs/method.md says what each does. None is the config's, and without
            one the default method.
        compat: "reference" for the reduction, constants and schedule of the paper's reference implementation
            (StyleGAN kinds); what `config` says goes before them.
        resize: scale images (of negatives and positives) of the same proportions but another size; otherwise they are
            refused, by name.
        precision: what the networks' passes run in while training: "float32", "bfloat16", "float16" (CUDA), or "auto",
            whichever of the first two is quicker here; the config's when not given.
        from_run: folder of a finished run on `gan`. This one begins with its unlearned GAN, and its negatives and
            positives join those given now (but for what was marked otherwise since). `gan` stays what the outcome is
            measured against; is_negative and config are not taken from there.

    Returns:
        `Result`.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came, before any training.
        NonFiniteError: the training diverged.
    """
    request = Request(
        gan=gan,
        negatives=negatives,
        positives=positives,
        is_negative=is_negative,
        config=config,
        out=out,
        seed=seed,
        device=device,
        method=method,
        compat=compat,
        resize=resize,
        precision=precision,
        from_run=from_run,
    )
    with started(request) as job:
        return _finish(job, METHODS[job.inputs.config.method].run(job.task))


def _finish(job: Job, outcome: Outcome) -> Result:
    """The result of a job, saved into its run folder."""
    config, out = job.inputs.config, job.run.out
    ran = {"precision": config.precision, "threads": config.threads}
    decisions = {"method": config.method, **ran, **outcome.decisions}
    earlier = job.inputs.earlier
    if earlier is not None:
        decisions.update(round=earlier.round + 1, from_run=str(earlier.folder))
    result = Result(
        gan=outcome.gan,
        adapted=outcome.adapted,
        history=job.run.history,
        decisions=decisions,
        seconds=time.monotonic() - job.began,
        config=config,
        out=out,
        seed=job.inputs.seed,
        original=job.inputs.original,
        rule=job.feedback.rule,
        negatives=job.inputs.negatives,
        positives=job.inputs.positives,
        previous=None if earlier is None else job.inputs.gan,
    )
    if out is not None:
        result.save(out / "result.safetensors")
        write_json(out / "decisions.json", decisions)
    return result


def adapt(
    gan: GAN,
    negatives: Any,
    is_negative: Rule | Callable[[Tensor], Tensor] | str | None = None,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    resize: bool = False,
) -> list[dict[str, Tensor]]:
    """Stage 1 on its own: the state dicts of `config.adapt.models` generators adapted to the negatives.

    Arguments and errors as of `unlearn`.
    """
    request = Request(
        gan=gan,
        negatives=negatives,
        is_negative=is_negative,
        config=config,
        out=out,
        seed=seed,
        device=device,
        resize=resize,
    )
    with started(request) as job:
        return adapt_all(job.task)


def repel(
    gan: GAN,
    adapted: Sequence[Mapping[str, Tensor]],
    negatives: Any,
    positives: Any = None,
    is_negative: Rule | Callable[[Tensor], Tensor] | str | None = None,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    out: str | Path | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    resize: bool = False,
) -> Result:
    """Stage 2 on its own, away from `adapted` (state dicts of generators, as `adapt` gives them).

    Arguments and errors otherwise as of `unlearn`; the config's method must be one with this stage.
    """
    request = Request(
        gan=gan,
        negatives=negatives,
        positives=positives,
        is_negative=is_negative,
        config=config,
        out=out,
        seed=seed,
        device=device,
        resize=resize,
        adapted=adapted,
    )
    with started(request) as job:
        states = job.inputs.adapted
        assert states is not None
        unlearned, decisions = repel_gan(job.task, states)
        return _finish(job, Outcome(unlearned, decisions, states))


def extrapolate(gan: GAN, adapted: Sequence[Mapping[str, Tensor]], s: float = 1.0) -> GAN:
    """The closed-form baseline: a copy of `gan` with theta_G - s (theta_N - theta_G), theta_N the adapted ones' mean.

    s = -1 is the adapted generator itself, 0 the pretrained one. Buffers stay as in `gan`.
    """
    return extrapolated(gan, check_adapted(gan, adapted), s)
