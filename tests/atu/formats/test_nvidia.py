"""NVIDIA network pickles in and out."""

import copy
import io
import logging

import nvidia_format as nf
import pytest
import torch

from atu.formats.export import export
from atu.formats.inspect import inspect_checkpoint
from atu.formats.tensors import CheckpointError
from atu.gan import GAN
from atu.networks import stylegan2, stylegan3
from atu.training.fit_discriminator import fit_discriminator


def same(a, b):
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype for k in one)


@pytest.fixture
def pair():
    return nf.small_pair()


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("c_dim", [0, 3])
def test_loads_tensor_identical_without_executing(tmp_path, protocol, c_dim):
    generator, discriminator, average = nf.small_pair(c_dim)
    path = tmp_path / "network.whatever"
    path.write_bytes(nf.dumps(nf.snapshot(generator, discriminator, average), protocol))
    nf.executed.clear()
    gan = GAN.load(path)
    assert not nf.executed
    assert same(gan.generator, generator)
    assert same(gan.discriminator, discriminator)
    assert same(gan.generator_ema, average)
    assert gan.c_dim == c_dim
    assert not gan.generator.training
    z, c = torch.randn(3, 8), torch.eye(3)[[0, 2, 1]] if c_dim else None
    image = gan.generator(z, c, truncation_psi=0.7, noise_mode="const")
    assert torch.equal(image, generator(z, c, truncation_psi=0.7, noise_mode="const"))
    assert same(gan.generator, generator)  # a call changes no buffer


def test_unchanged_gan_is_written_byte_for_byte(tmp_path, pair):
    source = tmp_path / "a.pkl"
    source.write_bytes(nf.dumps(nf.snapshot(*pair)))
    GAN.load(source).save(tmp_path / "b.pkl")
    assert (tmp_path / "b.pkl").read_bytes() == source.read_bytes()


def test_only_tensors_are_replaced_and_the_original_loader_reads_it(tmp_path, pair):
    source = tmp_path / "a.pkl"
    source.write_bytes(nf.dumps(nf.snapshot(*pair)))
    gan = GAN.load(source)
    with torch.no_grad():
        for module in gan.modules().values():
            for p in module.parameters():
                p += 1
    gan.copy().save(tmp_path / "b.pkl")
    loaded = nf.original_loads((tmp_path / "b.pkl").read_bytes())
    assert nf.executed[-1] == nf.SOURCE
    weight = loaded["G_ema"]._modules["mapping"]._modules["fc0"]._parameters["weight"]
    assert isinstance(weight, torch.nn.Parameter)
    assert torch.equal(weight, pair[2].mapping.fc0.weight + 1)
    assert torch.equal(loaded["D"]._modules["b4"]._modules["out"]._parameters["bias"], pair[1].b4.out.bias + 1)
    assert loaded["training_set_kwargs"]["path"] == "/data/x.zip"
    before, after = source.read_bytes(), (tmp_path / "b.pkl").read_bytes()
    changed = sum(x != y for x, y in zip(before, after, strict=True))
    assert changed <= 4 * sum(p.numel() for m in pair for p in m.parameters())


def test_save_via_safetensors_keeps_the_template(tmp_path, pair):
    source = tmp_path / "a.pkl"
    source.write_bytes(nf.dumps(nf.snapshot(*pair)))
    GAN.load(source).save(tmp_path / "run.safetensors")
    again = GAN.load(tmp_path / "run.safetensors")
    assert again.origin == {"format": "nvidia-pkl", "path": str(source)}
    export(again, tmp_path / "out", "nvidia-pkl")
    assert (tmp_path / "out").read_bytes() == source.read_bytes()


def test_template_is_needed_and_must_fit(tmp_path, pair):
    gan = GAN(pair[0], pair[1])
    with pytest.raises(CheckpointError, match="template"):
        gan.save(tmp_path / "x.pkl")
    other = tmp_path / "other.pkl"
    other.write_bytes(nf.dumps(nf.snapshot(*nf.small_pair(img_channels=1))))
    with pytest.raises(CheckpointError, match=r"expected shape \[1"):
        export(gan, tmp_path / "x.pkl", template=other)
    assert not (tmp_path / "x.pkl").exists()


def test_half_precision_file_comes_as_float32_and_goes_back_as_half(tmp_path, pair):
    halves = [copy.deepcopy(m).half() for m in pair]
    source = tmp_path / "half.pkl"
    source.write_bytes(nf.dumps(nf.snapshot(*halves)))
    gan = GAN.load(source)
    assert {t.dtype for t in gan.generator.state_dict().values()} == {torch.float32}
    assert torch.equal(gan.generator.mapping.fc0.weight, halves[0].mapping.fc0.weight.float())
    gan.save(tmp_path / "b.pkl")
    assert (tmp_path / "b.pkl").read_bytes() == source.read_bytes()


def test_channels_last_weights(tmp_path, pair):
    for module in pair:
        module.to(memory_format=torch.channels_last)
    source = tmp_path / "a.pkl"
    source.write_bytes(nf.dumps(nf.snapshot(*pair)))
    gan = GAN.load(source)
    assert same(gan.generator, pair[0])
    gan.save(tmp_path / "b.pkl")
    assert (tmp_path / "b.pkl").read_bytes() == source.read_bytes()


def test_only_g_ema_serves_as_both(tmp_path, pair, caplog):
    source = tmp_path / "ema.pkl"
    source.write_bytes(nf.dumps(nf.snapshot(None, None, pair[2])))
    with caplog.at_level(logging.INFO, "atu"):
        gan = GAN.load(source)
    assert "used for both" in caplog.text and "--train-discriminator" in caplog.text
    assert same(gan.generator, pair[2]) and same(gan.generator_ema, pair[2])
    assert gan.generator is not gan.generator_ema
    assert gan.discriminator is None
    fitted = fit_discriminator(gan, steps=2, batch_size=4, channel_base=64, channel_max=8)
    assert gan.discriminator is None
    assert fitted.logits(gan.sample(4)).shape == (4,)


def test_network_pickled_alone(tmp_path, pair):
    source = tmp_path / "net.pkl"
    source.write_bytes(nf.dumps(pair[2].eval()))
    assert same(GAN.load(source).generator, pair[2])
    source.write_bytes(nf.dumps(nf.snapshot(None, pair[1], None)))
    with pytest.raises(CheckpointError, match="no generator"):
        GAN.load(source)


def test_options_survive(tmp_path):
    torch.manual_seed(0)
    options = dict(z_dim=8, c_dim=2, w_dim=6, img_resolution=16, img_channels=1)
    generator = stylegan2.Generator(
        **options,
        mapping_kwargs=dict(num_layers=3, layer_features=5, lr_multiplier=0.1, w_avg_beta=0.9),
        synthesis_kwargs=dict(channel_base=64, channel_max=8, num_fp16_res=2, architecture="resnet", conv_clamp=256),
    )
    discriminator = stylegan2.Discriminator(
        2,
        16,
        1,
        architecture="skip",
        channel_base=64,
        channel_max=8,
        block_kwargs=dict(freeze_layers=2),
        epilogue_kwargs=dict(mbstd_group_size=2),
    )
    source = tmp_path / "a.pkl"
    source.write_bytes(nf.dumps(nf.snapshot(generator, discriminator, generator)))
    gan = GAN.load(source)
    assert gan.generator.init_kwargs["synthesis_kwargs"]["num_fp16_res"] == 2
    assert gan.generator.synthesis.b16.use_fp16 and not gan.generator.synthesis.b4.use_fp16
    assert gan.generator.mapping.w_avg_beta == 0.9
    frozen = {n for n, _ in discriminator.named_buffers()} - {n for n, _ in discriminator.named_parameters()}
    assert {n for n, _ in gan.discriminator.named_buffers()} == frozen
    assert "b16.fromrgb.weight" in frozen
    x, c = torch.randn(4, 1, 16, 16), torch.eye(2)[[0, 1, 0, 1]]
    assert torch.equal(gan.discriminator(x, c), discriminator(x, c))


def test_flat_synthesis_options_and_version_defaults(tmp_path, pair):
    """One code base nests the synthesis options, the other has them flat and clamps at 256 by default."""
    generator = pair[0]
    flat = {k: v for k, v in generator.init_kwargs.items() if k != "synthesis_kwargs"}
    generator.init_kwargs = {
        **flat,
        **generator.init_kwargs["synthesis_kwargs"],
        "fused_modconv_default": "inference_only",
    }
    for layer in generator.synthesis.modules():
        if hasattr(layer, "conv_clamp"):
            layer.conv_clamp = 256
    source = tmp_path / "a.pkl"
    source.write_bytes(nf.dumps(nf.snapshot(generator, None, None)))
    assert GAN.load(source).generator.synthesis.b8.conv0.conv_clamp == 256


def test_stylegan3(tmp_path):
    torch.manual_seed(0)
    kinds = [{}, dict(conv_kernel=1, use_radial_filters=True, filter_size=4)]
    for extra in kinds:
        network = stylegan3.Generator(8, 0, 8, 16, 3, channel_base=128, channel_max=8, num_layers=4, **extra)
        source = tmp_path / "g3.pkl"
        source.write_bytes(nf.dumps(nf.snapshot(network, None, network)))
        gan = GAN.load(source)
        assert type(gan.generator) is stylegan3.Generator and same(gan.generator, network)
        z = torch.randn(2, 8)
        assert torch.equal(gan.generator(z), network(z))
        gan.save(tmp_path / "b.pkl")
        assert (tmp_path / "b.pkl").read_bytes() == source.read_bytes()
        assert inspect_checkpoint(source)["networks"]["generator"]["kind"] == "stylegan3 generator"


def test_inspect(tmp_path, pair):
    source = tmp_path / "a.pkl"
    source.write_bytes(nf.dumps(nf.snapshot(*pair)))
    found = inspect_checkpoint(source)
    net = found["networks"]["discriminator"]
    assert found["format"] == "nvidia-pkl"
    assert net["kind"] == "stylegan2 discriminator" and net["resolution"] == 8
    assert net["parameters"] == sum(p.numel() for p in pair[1].parameters())
    assert sum(net["parts"].values()) == net["parameters"]
    assert found["options"]["training_set_kwargs"] == {"path": "/data/x.zip", "max_size": 10, "use_labels": False}


def broken(pair, change):
    generator = copy.deepcopy(pair[0])
    change(generator)
    return nf.dumps(nf.snapshot(generator, None, None))


def _no_such_option(generator):
    generator.init_kwargs["synthesis_kwargs"]["wavelets"] = True


def _wrong_shape(generator):
    generator.mapping.fc0.weight = torch.nn.Parameter(torch.zeros(8, 9))


def _nan(generator):
    with torch.no_grad():
        generator.synthesis.b4.const[0, 0, 0] = float("nan")


def _terabyte(generator):
    generator.init_kwargs["synthesis_kwargs"].update(channel_base=2**40, channel_max=2**40)


def _huge_but_allowed(generator):
    generator.img_resolution = 1024
    generator.init_kwargs["synthesis_kwargs"].update(channel_base=2**26, channel_max=2**16)


def _missing(generator):
    del generator.mapping.fc1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_no_such_option, "unknown option 'wavelets'"),
        (_wrong_shape, r"mapping.fc0.weight: expected shape \[8, 8\], got \[8, 9\]"),
        (_nan, r"synthesis.b4.const: holds values that are not finite"),
        (_terabyte, "channel_base: expected a number from 1"),
        (_huge_but_allowed, "do not fit the network"),
        (_missing, "missing mapping.fc1.bias"),
    ],
)
def test_networks_that_do_not_fit(tmp_path, pair, change, message):
    path = tmp_path / "bad.pkl"
    path.write_bytes(broken(pair, change))
    with pytest.raises(CheckpointError, match=message):
        GAN.load(path)


def test_pickle_without_networks_lists_what_it_holds(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(nf.dumps({"alpha": 1, "beta": [2]}))
    with pytest.raises(CheckpointError, match="alpha, beta"):
        GAN.load(path)


def test_in_memory_stream_is_left_where_it_was():
    from atu.formats.nvidia_pickle import read_network_pickle

    data = nf.dumps({"x": nf.EasyDict(y=1), "lr": torch.tensor([1.0, 2.0])})
    stream = io.BytesIO(data)
    found = read_network_pickle(stream, len(data))
    assert found["x"] == {"y": 1}
    assert torch.equal(found["lr"].read(stream), torch.tensor([1.0, 2.0]))
