"""ONNX, safetensors and the commands."""

import json

import nvidia_format as nf
import pytest
import torch
from click.testing import CliRunner

from atu.cli import cli
from atu.gan import GAN
from atu.interop import export, fit_discriminator, format_of


def test_format_by_suffix():
    names = ["a.pkl", "a.pt", "a.pth", "a.onnx", "a.safetensors", "a"]
    assert [format_of(n) for n in names] == ["nvidia-pkl", "rosinality-pt", "rosinality-pt", "onnx"] + [
        "safetensors"
    ] * 2
    with pytest.raises(ValueError, match="format: expected one of nvidia-pkl"):
        export(GAN(nf.small_pair()[0]), "x", "tflite")


def test_safetensors_round_trip_keeps_every_buffer(tmp_path):
    generator, discriminator, average = nf.small_pair(c_dim=2)
    gan = GAN(generator, discriminator, generator_ema=average)
    gan.save(tmp_path / "a.safetensors")
    again = GAN.load(tmp_path / "a.safetensors")
    for name, module in gan.modules().items():
        loaded = again.modules()[name].state_dict()
        assert {n for n in loaded if n.endswith(("w_avg", "noise_const"))} == {
            n for n in module.state_dict() if n.endswith(("w_avg", "noise_const"))
        }
        assert all(torch.equal(value, loaded[n]) for n, value in module.state_dict().items())


@pytest.mark.slow
def test_onnx_agrees_with_torch(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    generator, _, average = nf.small_pair(c_dim=3)
    gan = GAN(generator, generator_ema=average)
    gan.save(tmp_path / "g.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "g.onnx"), providers=["CPUExecutionProvider"])
    z, c = torch.randn(5, 8), torch.eye(3)[[0, 1, 2, 0, 1]]
    (image,) = session.run(None, {"z": z.numpy(), "c": c.numpy()})
    expected = average.eval()(z, c, noise_mode="const")
    torch.testing.assert_close(torch.from_numpy(image), expected, rtol=0, atol=1e-4)


def test_fitted_discriminator_tells_samples_from_disturbed_ones():
    """After 60 steps it scores the generator's samples above those of a strongly disturbed copy."""
    generator = nf.small_pair(seed=3)[0]
    gan = fit_discriminator(GAN(generator), 60, batch_size=16, channel_base=64, channel_max=8, seed=1)
    disturbed = nf.small_pair(seed=9)[0]
    with torch.no_grad():
        own, other = gan.logits(gan.sample(128, seed=2)), gan.logits(gan.sample(128, seed=2, generator=disturbed))
    assert float((own[:, None] > other[None]).float().mean()) > 0.6  # 0.5 is chance
    with pytest.raises(ValueError, match="steps"):
        fit_discriminator(gan, 0)


def test_commands_end_to_end(tmp_path):
    source = tmp_path / "net.pkl"
    source.write_bytes(nf.dumps(nf.snapshot(*nf.small_pair())))
    run = CliRunner().invoke(cli, ["inspect", str(source), "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout)["networks"]["generator"]["kind"] == "stylegan2 generator"
    shown = CliRunner().invoke(cli, ["inspect", str(source)]).output
    assert "nvidia-pkl" in shown and "generator_ema" in shown and "training_set_kwargs" in shown
    for target in ("a.safetensors", "b.pkl", "c.pt"):
        run = CliRunner().invoke(cli, ["export", str(source), str(tmp_path / target)])
        assert run.exit_code == 0, run.output
    assert (tmp_path / "b.pkl").read_bytes() == source.read_bytes()
    (tmp_path / "bad.pkl").write_bytes(b"\x80\x04cos\nsystem\n.")
    run = CliRunner().invoke(cli, ["inspect", str(tmp_path / "bad.pkl")])
    assert run.exit_code != 0 and "os.system" in run.output
