"""The encoders that people have: small instances of the real classes, with random weights.

Tests skip where the extra "encoders" is not installed. What is expected comes from the libraries themselves,
called as their documentation says.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor, nn

from latentfit import fit_latent_sampler
from latentfit.errors import DecoderUnavailable, EncoderOutputError, NonFiniteError, OptionError
from latentfit.models import decoder_of, encoder_of

SIDE = 16
TOKEN_FIT = {"method": "gaussian", "progress": False}  # these tests are about encoders


def images(n: int = 24, channels: int = 3, side: int = SIDE) -> Tensor:
    """Images (n, channels, side, side) in [-1, 1], smooth enough that encoders see structure."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, channels, 4, 4, generator=generator) * 2 - 1
    return nn.functional.interpolate(coarse, side, mode="bilinear")


def sound(n: int = 24) -> Tensor:
    """Mono sound (n, 1, 64)."""
    return torch.randn(n, 1, 64, generator=torch.Generator().manual_seed(0))


def autoencoder_kl() -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=2,
        sample_size=SIDE,
    )


def autoencoder_oobleck() -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*weight_norm.* is deprecated", FutureWarning)
        return diffusers.AutoencoderOobleck(
            encoder_hidden_size=8,
            downsampling_ratios=[2, 4],
            channel_multiples=[1, 2],
            decoder_channels=8,
            decoder_input_channels=4,
            audio_channels=1,
        )


def autoencoder_tiny() -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        latent_channels=2,
        upsampling_scaling_factor=2,
    )


def vq_model() -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=2,
        num_vq_embeddings=16,
    )


def autoencoder_dc() -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.AutoencoderDC(
        latent_channels=2,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
    )


def autoencoder_rae(encoder_type: str = "dinov2") -> nn.Module:
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "AutoencoderRAE"):
        pytest.skip(f"diffusers {diffusers.__version__} has no AutoencoderRAE")
    return diffusers.AutoencoderRAE(
        encoder_type=encoder_type,
        encoder_hidden_size=64,
        encoder_patch_size=8,
        encoder_num_hidden_layers=1,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        patch_size=8,
        encoder_input_size=SIDE,
    )


_VIT = {
    "hidden_size": 12,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 4,
}


def dinov2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.Dinov2Model(transformers.Dinov2Config(**_VIT))


def vit_mae() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    return transformers.ViTMAEModel(transformers.ViTMAEConfig(**_VIT, intermediate_size=24))


def pythae_ae() -> nn.Module:
    models = pytest.importorskip("pythae.models")
    return models.AE(models.AEConfig(input_dim=(3, SIDE, SIDE), latent_dim=4))


def pythae_vae() -> nn.Module:
    models = pytest.importorskip("pythae.models")
    return models.VAE(models.VAEConfig(input_dim=(3, SIDE, SIDE), latent_dim=4))


def seeded(build: Callable[[], Any], seed: int = 0) -> Any:
    """Build with weights by a seed; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


BUILDERS = {
    "AutoencoderKL": autoencoder_kl,
    "AutoencoderOobleck": autoencoder_oobleck,
    "AutoencoderTiny": autoencoder_tiny,
    "VQModel": vq_model,
    "AutoencoderDC": autoencoder_dc,
    "AutoencoderRAE": autoencoder_rae,
    "AutoencoderRAE on ViTMAE": lambda: autoencoder_rae("mae"),
    "DINOv2": dinov2,
    "ViTMAE": vit_mae,
    "pythae AE": pythae_ae,
    "pythae VAE": pythae_vae,
}
DECODERS = [name for name in BUILDERS if name not in ("DINOv2", "ViTMAE")]


def vit_mae_in_order(model: Any, x: Tensor) -> Tensor:
    """ViTMAE with nothing masked: it sorts patches by the noise that it is given."""
    model.config.mask_ratio = 0.0
    noise = torch.linspace(0, 1, (SIDE // 4) ** 2).expand(len(x), -1)
    return model(x, noise=noise).last_hidden_state


# What each library's own documentation calls the latents, and how it decodes them.
LATENTS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "AutoencoderKL": lambda m, x: m.encode(x).latent_dist.mode(),
    "AutoencoderOobleck": lambda m, x: m.encode(x).latent_dist.mode(),
    "AutoencoderTiny": lambda m, x: m.encode(x).latents,
    "VQModel": lambda m, x: m.encode(x).latents,
    "AutoencoderDC": lambda m, x: m.encode(x).latent,
    "AutoencoderRAE": lambda m, x: m.encode(x).latent,
    "AutoencoderRAE on ViTMAE": lambda m, x: m.encode(x).latent,
    "DINOv2": lambda m, x: m(x).last_hidden_state[:, 0],  # its pooled output is the class token
    "ViTMAE": vit_mae_in_order,
    "pythae AE": lambda m, x: m.encoder(x).embedding,
    "pythae VAE": lambda m, x: m.encoder(x).embedding,
}


def decoded(name: str, model: Any, z: Tensor) -> Tensor:
    return model.decoder(z)["reconstruction"] if "pythae" in name else model.decode(z).sample


@pytest.fixture(params=BUILDERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def data_for(name: str) -> Tensor:
    return sound() if name == "AutoencoderOobleck" else images()


def encode(encoder: Any, x: Tensor, **how: Any) -> Tensor:
    model = encoder_of(encoder, **how)
    with model.evaluating(), torch.inference_mode():
        return model(x).clone()


def test_the_latents_are_the_librarys_own(name: str) -> None:
    model, x = seeded(BUILDERS[name]).train(), data_for(name)
    got = encode(model, x)
    assert model.training
    with torch.inference_mode():
        torch.testing.assert_close(got, LATENTS[name](model.eval(), x))


def test_encoding_twice_gives_the_same_latents(name: str) -> None:
    model, x = seeded(BUILDERS[name]), data_for(name)
    assert torch.equal(encode(model, x), encode(model, x))


@pytest.mark.parametrize("name", DECODERS)
def test_one_line_generates(name: str) -> None:
    model, x = seeded(BUILDERS[name]), data_for(name)
    made = fit_latent_sampler(model, x, decoder=model, **TOKEN_FIT).generate(3, seed=0)
    assert made.shape == (3, *x.shape[1:])
    sampler = fit_latent_sampler(model, x, decoder=model, **TOKEN_FIT)
    with torch.inference_mode():
        torch.testing.assert_close(made, decoded(name, model.eval(), sampler.sample(3, seed=0)))
    assert sampler.generate(0).shape == (0, *x.shape[1:])


@pytest.mark.parametrize("name", ["DINOv2", "ViTMAE"])
def test_what_only_encodes_can_be_sampled_and_scored(name: str) -> None:
    model, x = seeded(BUILDERS[name]), images(64)
    first = {"output": lambda returned: returned.last_hidden_state[:, 0]}
    sampler = fit_latent_sampler(model, x, **first, **TOKEN_FIT)
    assert sampler.log_prob(sampler.sample(5)).isfinite().all()
    with pytest.raises(DecoderUnavailable):
        sampler.generate(1)


def test_principal_components_both_ways() -> None:
    rows = images().flatten(1).double().numpy()
    pca = PCA(3).fit(rows)
    sampler = fit_latent_sampler(pca, rows, decoder=pca, **TOKEN_FIT)
    expected = pca.inverse_transform(sampler.sample(4, seed=0).numpy())
    torch.testing.assert_close(sampler.generate(4, seed=0), torch.from_numpy(expected))
    assert torch.equal(encode(pca, torch.from_numpy(rows)), torch.from_numpy(pca.transform(rows)))


def test_timm_where_torchvision_works() -> None:
    try:
        import torchvision  # noqa: F401
    except Exception as error:
        pytest.skip(f"timm needs torchvision, which does not work here: {error!r}")
    timm = pytest.importorskip("timm")
    model = seeded(lambda: timm.create_model("vit_tiny_patch16_224", num_classes=0)).eval()
    x = images(2, side=224)
    with torch.inference_mode():
        torch.testing.assert_close(encode(model, x), model(x))
        torch.testing.assert_close(encode(model.forward_features, x), model.forward_features(x))


# Choices


def test_a_posterior_is_sampled_by_the_seed_if_asked() -> None:
    model, x = seeded(autoencoder_kl).eval(), images()
    with torch.inference_mode():
        posterior = model.encode(x).latent_dist
    latents = [encode_by(seed, model, x, "sample") for seed in (0, 0, 1)]
    assert torch.equal(latents[0], latents[1])
    assert not torch.equal(latents[0], latents[2])
    scores = (torch.cat(latents[1:]) - posterior.mean.repeat(2, 1, 1, 1)) / posterior.std.repeat(
        2, 1, 1, 1
    )
    n = scores.numel()  # 6,144 standard normals, unless mean or deviation is wrong
    assert abs(float(scores.mean())) < 5 / n**0.5
    assert abs(float(scores.std()) - 1) < 5 / (2 * n) ** 0.5


def encode_by(seed: int, model: nn.Module, x: Tensor, output: str) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return encode(model, x, output=output)


@pytest.mark.parametrize("build, output", [(autoencoder_kl, "sample"), (vit_mae, None)])
def test_a_fit_encodes_alike_and_leaves_the_random_state(build: Any, output: str | None) -> None:
    model, x = seeded(build), images()
    state = torch.get_rng_state()
    one, two = (fit_latent_sampler(model, x, output=output, **TOKEN_FIT) for _ in range(2))
    assert torch.equal(one.sample(4, seed=0), two.sample(4, seed=0))
    assert torch.equal(torch.get_rng_state(), state)


def test_pythaes_posterior_is_sampled_if_asked() -> None:
    model, x = seeded(pythae_vae).eval(), images(2000)
    with torch.inference_mode():
        returned = model.encoder(x)
    scores = (encode_by(0, model, x, "sample") - returned.embedding) / (
        0.5 * returned.log_covariance
    ).exp()
    assert abs(float(scores.mean())) < 5 / scores.numel() ** 0.5
    assert abs(float(scores.std()) - 1) < 5 / (2 * scores.numel()) ** 0.5
    assert torch.equal(encode(model, x, output="mean"), returned.embedding)


@pytest.mark.parametrize(
    "build, output, expected",
    [
        (autoencoder_kl, "mean", lambda r: r.latent_dist.mean),
        (autoencoder_kl, "latent_dist", lambda r: r.latent_dist.mean),
        (autoencoder_kl, "latent_dist.mean", lambda r: r.latent_dist.mean),
        (autoencoder_kl, "latent_dist.logvar", lambda r: r.latent_dist.logvar),
        (autoencoder_kl, 0, lambda r: r.latent_dist.mean),
        (autoencoder_kl, lambda r: r["latent_dist"].std, lambda r: r.latent_dist.std),
        (dinov2, "last_hidden_state", lambda r: r.last_hidden_state),
        (dinov2, "pooler_output", lambda r: r.pooler_output),
        (dinov2, 0, lambda r: r.last_hidden_state),
        (dinov2, -1, lambda r: r.pooler_output),
        (dinov2, lambda r: r.last_hidden_state[:, 1:], lambda r: r.last_hidden_state[:, 1:]),
    ],
)
def test_output_chooses(build: Any, output: Any, expected: Callable[[Any], Tensor]) -> None:
    model, x = seeded(build).eval(), images()
    with torch.inference_mode():
        returned = model.encode(x) if hasattr(model, "encode") else model(x)
    assert torch.equal(encode(model, x, output=output), expected(returned))


def test_a_tuple_with_one_posterior_is_enough() -> None:
    model, x = seeded(autoencoder_kl), images()
    as_tuple = encode(lambda batch: model.encode(batch, return_dict=False), x)
    assert torch.equal(as_tuple, encode(model, x))


def test_what_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(EncoderOutputError, match="'nope'.*holds 'last_hidden_state': Tensor"):
        encode(seeded(dinov2), images(), output="nope")
    with pytest.raises(EncoderOutputError, match=r"a method of that name"):
        encode(seeded(autoencoder_kl), images(), output="latent_dist.sample")


# ViTMAE masks and shuffles in eval mode, too


def wrapped(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: model(x).last_hidden_state


@pytest.mark.parametrize("wrap", [lambda m: m, wrapped])
@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_vit_mae_is_left_as_it_was(wrap: Any, error: type[BaseException] | None) -> None:
    model, x = seeded(vit_mae), images()
    ratio, attributes = model.config.mask_ratio, set(vars(model.embeddings))
    kept = model(x).last_hidden_state.shape[1]

    def fail(*_: Any) -> None:
        if error:
            raise error("midway")

    hook = model.layernorm.register_forward_hook(fail)
    if error:
        with pytest.raises(error, match="midway"):
            encode(wrap(model), x)
    else:
        assert encode(wrap(model), x).shape[1] == 1 + (SIDE // 4) ** 2 > kept
    hook.remove()
    assert model.config.mask_ratio == ratio == 0.75
    assert set(vars(model.embeddings)) == attributes
    one, two = (seeded(lambda: model(x).last_hidden_state, seed) for seed in (0, 1))
    assert one.shape[1] == kept
    assert not torch.equal(one, two)  # it masks at random again


def test_vit_mae_can_be_entered_twice_and_keeps_a_replaced_method() -> None:
    model, x = seeded(vit_mae), images()
    own = model.embeddings.random_masking
    model.embeddings.random_masking = own
    encoder = encoder_of(model)
    with encoder.evaluating():
        with encoder.evaluating():
            inside = encoder(x)
        assert torch.equal(encoder(x), inside)
    assert vars(model.embeddings)["random_masking"] is own
    assert model.config.mask_ratio == 0.75


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_decoder_in_half_precision_takes_what_was_fitted_in_float32(dtype: torch.dtype) -> None:
    model, x = seeded(autoencoder_kl), images()
    half = seeded(autoencoder_kl).to(dtype)
    sampler = fit_latent_sampler(model, x, decoder=half, **TOKEN_FIT)
    assert sampler.dtype == torch.float32
    made = sampler.generate(3, seed=0)
    assert made.dtype == dtype
    expected = decoded("AutoencoderKL", model.eval(), sampler.sample(3, seed=0))
    torch.testing.assert_close(made.float(), expected.detach(), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_encoder_in_half_precision_gives_latents_in_its_own(dtype: torch.dtype) -> None:
    sampler = fit_latent_sampler(seeded(autoencoder_kl).to(dtype), images(), **TOKEN_FIT)
    assert sampler.dtype == sampler.sample(2).dtype == dtype


@pytest.mark.parametrize("autocast", ["bfloat16", "float16"])
def test_autocast_computes_in_half_precision_and_gives_float32(autocast: str) -> None:
    model, x = seeded(autoencoder_kl), images()
    exact, rounded = encode(model, x), encode(model, x, autocast=autocast)
    assert rounded.dtype == torch.float32
    assert not torch.equal(rounded, exact)
    torch.testing.assert_close(rounded, exact, atol=0.1, rtol=0.1)
    assert next(model.parameters()).dtype == torch.float32
    with torch.autocast("cpu", getattr(torch, autocast)), torch.inference_mode():
        expected = model.eval().encode(x).latent_dist.mode()
    assert torch.equal(rounded, expected.float())
    sampler = fit_latent_sampler(model, x, autocast=autocast, **TOKEN_FIT)
    assert sampler.dtype == torch.float32


@pytest.mark.parametrize("how", [{"autocast": "float16"}, {}])
def test_an_overflow_in_half_precision_is_told_with_the_remedy(how: dict[str, str]) -> None:
    linear = nn.Linear(4, 2, bias=False)
    nn.init.constant_(linear.weight, 1.0)
    x = torch.ones(10, 4)
    x[3:5] = 30_000.0  # their sum is over float16's 65,504
    encoder = linear if how else linear.half()
    told = "got 2 of 10 rows with NaN or infinity, the first at index 3; .*float32"
    with pytest.raises(NonFiniteError, match=told):
        fit_latent_sampler(encoder, x, **how, **TOKEN_FIT)
    fit_latent_sampler(linear.float(), x, **TOKEN_FIT)  # the remedy


@pytest.mark.parametrize("autocast", ["float64", "half", torch.float64, True])
def test_other_precisions_are_refused(autocast: Any) -> None:
    with pytest.raises(OptionError, match="Expected autocast as 'bfloat16' or 'float16'"):
        encoder_of(nn.Linear(2, 2), autocast=autocast)


def test_autocast_is_torchs_alone() -> None:
    pca = PCA(2).fit(images().flatten(1).numpy())
    with pytest.raises(OptionError, match="as it takes arrays"):
        encoder_of(pca, autocast="bfloat16")


def test_a_decoder_is_not_mistaken() -> None:
    model = seeded(vq_model)
    z = torch.randn(5, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():  # it quantises, by itself
        expected = model.eval().decode(z).sample
        assert torch.equal(decoder_of(model)(z), expected)
        assert not torch.equal(model.decode(z, force_not_quantize=True).sample, expected)


@pytest.mark.slow
def test_the_table_of_encoders(root: Path, run_python: Any, tmp_path: Path) -> None:
    pytest.importorskip("pythae")
    script, out = root / "benchmarks" / "encoders.py", tmp_path / "out"
    run_python(str(script), "--quick", "--only", "pythae VAE", "--out", str(out))  # or it fails
    rows = json.loads((out / "results.json").read_text())["rows"]
    cells = rows["pythae VAE"]["cells"]
    assert list(cells) == ["fit", "sample", "log_prob", "generate", "save", "load"]
    assert all(cell["ok"] for cell in cells.values())
    assert rows["pythae VAE"]["latent_shape"] == [10]
    assert "| pythae VAE | random weights | 10 | ok, " in (out / "table.md").read_text()
