"""The C++ model against Hugging Face transformers and nanoGPT on the same safetensors files."""

import pytest
import torch
import transformers
from probe import Probe
from safetensors.torch import save_file

# Wide weights: logits differ by whole numbers, so that a wrong one shows.
SMALL = {"n_layer": 3, "n_head": 4, "n_embd": 64, "vocab_size": 211, "n_positions": 192}
LOGITS_ATOL = 1e-4
# What rounding every key and value to 8 bits moves the logits by, as a share of their standard deviation.
INT8_RMS, INT8_MOST = 0.02, 0.15


def random_tokens(batch, length, vocab_size=SMALL["vocab_size"], seed=1):
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def small_model():
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        **SMALL, initializer_range=0.2, bos_token_id=None, eos_token_id=None, pad_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():  # transformers starts biases at zero, norms at one
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=float("ln" in name and "weight" in name), std=0.2)
    return model


def logits_of(model, tokens):
    with torch.inference_mode():
        return model(tokens).logits


def save_whole(model, folder):
    model.save_pretrained(folder)
    assert (folder / "model.safetensors").exists()
    return model


def save_sharded(model, folder):
    model.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    return model


def save_bfloat16(model, folder):
    """Computed in float32 from the rounded weights, as the probe does."""
    rounded = transformers.GPT2LMHeadModel(model.config)
    rounded.load_state_dict(model.state_dict())
    rounded.to(torch.bfloat16).save_pretrained(folder)
    return rounded.float().eval()


def save_without_prefix(model, folder):
    """As the published gpt2 files are: no "transformer." and no head."""
    save_file(
        {k: v.contiguous() for k, v in model.transformer.state_dict().items()}, folder / "gpt2.safetensors"
    )
    return model


@pytest.mark.parametrize("save", [save_whole, save_sharded, save_bfloat16, save_without_prefix])
def test_logits_equal_those_of_transformers(built, tmp_path, small_model, save):
    model = save(small_model, tmp_path)
    tokens = random_tokens(4, SMALL["n_positions"])
    check_logits(Probe(built("tests/gpt2_probe"), tmp_path, SMALL), tokens, logits_of(model, tokens))


def check_logits(probe, tokens, want):
    for version in ("v0", "v1"):
        torch.testing.assert_close(probe.logits(version, tokens), want, atol=LOGITS_ATOL, rtol=0)
    difference = (probe.logits("v2", tokens) - want) / want.std()
    assert 0 < difference.square().mean().sqrt() < INT8_RMS
    assert difference.abs().max() < INT8_MOST


def test_logits_of_full_size(built, saved_gpt2):
    model, folder = saved_gpt2
    sizes = {key: getattr(model.config, key) for key in SMALL}
    tokens = random_tokens(2, 48, sizes["vocab_size"])
    check_logits(Probe(built("tests/gpt2_probe"), folder, sizes), tokens, logits_of(model, tokens))


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_logits_equal_those_of_nanogpt(built, tmp_path, nanogpt, prefix):
    torch.manual_seed(0)
    config = nanogpt.GPTConfig(
        block_size=SMALL["n_positions"], dropout=0.0, bias=True,
        **{key: SMALL[key] for key in ("n_layer", "n_head", "n_embd", "vocab_size")},
    )  # fmt: skip
    model = nanogpt.GPT(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    state = {prefix + name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    state[prefix + "lm_head.weight"] = state[prefix + "transformer.wte.weight"].clone()  # tied, written twice
    save_file(state, tmp_path / "ckpt.safetensors")
    tokens = random_tokens(4, SMALL["n_positions"])
    with torch.inference_mode():
        want, _ = model(tokens, targets=tokens)  # without targets it gives the last token's alone
    check_logits(Probe(built("tests/gpt2_probe"), tmp_path / "ckpt.safetensors", SMALL), tokens, want)


def test_greedy_generation_equals_that_of_transformers(built, tmp_path, small_model):
    small_model.save_pretrained(tmp_path)
    prompts = random_tokens(8, 16, seed=5)  # no near ties: the likeliest tokens lead by 0.005
    with torch.inference_mode():
        want = small_model.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=32
        )
    assert want.shape == (8, 48)
    probe = Probe(built("tests/gpt2_probe"), tmp_path, SMALL)
    for version in ("v0", "v1"):
        assert torch.equal(probe.generate(version, prompts, 32), want)


def test_greedy_generation_is_the_same_with_and_without_cache(built, tmp_path, small_model):
    small_model.save_pretrained(tmp_path)
    probe = Probe(built("tests/gpt2_probe"), tmp_path, SMALL)
    prompts = random_tokens(64, 8, seed=7)  # no near ties: the likeliest tokens lead by 0.0003
    cached = probe.generate("v1", prompts, 128)
    assert cached.shape == (64, 136)
    assert torch.equal(probe.generate("v0", prompts, 128), cached)
    assert torch.equal(cached[:, :8], prompts)
    assert len(cached[:, 8:].unique()) > 50, "generations too tame to tell models apart"
