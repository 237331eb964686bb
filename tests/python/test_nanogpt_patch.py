"""What patching a nanoGPT leaves as it is, and what it refuses."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpt_models import SIZES, greedy, make_gpt, random_tokens, sampled
from kvfuse.nanogpt import CachedGpt, patch, unpatch
from op_inputs import one_thread
from torch import nn

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def few_threads():
    with one_thread():
        yield


@pytest.fixture
def model(nanogpt):
    return make_gpt(nanogpt)


def loss_and_gradients(model, tokens, seed=5):
    torch.manual_seed(seed)
    model.zero_grad()
    loss = model(tokens[:, :-1], targets=tokens[:, 1:].contiguous())[1]
    loss.backward()
    return [loss.detach(), *(p.grad.clone() for p in model.parameters())]


@pytest.mark.parametrize("version", ["v1", "v2", "v4a"])
def test_training_is_that_of_nanogpt(nanogpt, version):
    model = make_gpt(nanogpt, dropout=0.1).train()
    tokens = random_tokens(3, 30)
    want = loss_and_gradients(model, tokens)
    patch(model, version)
    for x, y in zip(loss_and_gradients(model, tokens), want, strict=True):
        assert torch.equal(x, y)


def test_generating_follows_training(model):
    tokens = random_tokens(1, 5)
    before = greedy(patch(model, "v1"), tokens, 40)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_and_gradients(model.train(), random_tokens(3, 30))
    optimizer.step()
    got = greedy(model.eval(), tokens, 40)
    assert not torch.equal(got, before)
    assert torch.equal(greedy(unpatch(model), tokens, 40), got)


def test_generating_in_training_drops_as_nanogpt_does(nanogpt):
    model = make_gpt(nanogpt, dropout=0.3).train()
    tokens = random_tokens(2, 5)
    want = sampled(model, tokens, 20)
    assert not torch.equal(want, sampled(copy.deepcopy(model).eval(), tokens, 20))
    assert torch.equal(sampled(patch(model, "v1"), tokens, 20), want)


def test_patching_changes_generate_alone_and_unpatching_restores_it(model):
    attributes, modules = dict(vars(model)), list(model.named_modules())
    state, original = list(model.state_dict()), model.generate
    assert patch(model, "v2") is model
    patch(model, "v1")
    assert {k: v for k, v in vars(model).items() if k != "generate"} == attributes
    assert list(model.named_modules()) == modules
    assert list(model.state_dict()) == state
    assert not model.training
    assert unpatch(model) is model
    assert vars(model) == attributes
    assert model.generate == original
    with pytest.raises(ValueError, match="expected a patched model, got GPT as it is"):
        unpatch(model)


def test_unpatching_restores_a_generate_of_the_object(model):
    own = lambda *arguments: "mine"  # noqa: E731
    model.generate = own
    patch(patch(model), "v1")
    assert model.generate is not own
    assert unpatch(model).generate is own


def test_a_failed_patch_changes_nothing(model):
    attributes = dict(vars(model))
    with pytest.raises(ValueError):
        patch(model, "v3f")
    assert vars(model) == attributes


def test_modes_survive_patching(nanogpt):
    model = make_gpt(nanogpt, dropout=0.1).train()
    model.transformer.h[1].eval()
    modes = [module.training for module in model.modules()]
    random = torch.get_rng_state()
    patch(model)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_patched_and_its_own(model, copied):
    tokens = random_tokens(2, 5)
    want = greedy(patch(model, "v1"), tokens, 30)
    other = copied(model)
    assert torch.equal(greedy(other, tokens, 30), want)
    with torch.no_grad():
        other.lm_head.weight.neg_()
    assert not torch.equal(greedy(other, tokens, 30), want)
    assert torch.equal(greedy(model, tokens, 30), want)
    assert torch.equal(greedy(unpatch(other), tokens, 30), greedy(patch(other, "v1"), tokens, 30))


def test_a_checkpoint_loads_into_a_patched_model(nanogpt, model, tmp_path):
    tokens = random_tokens(1, 5)
    torch.save(patch(model, "v1").state_dict(), tmp_path / "state.pt")
    other = patch(make_gpt(nanogpt, seed=9), "v1")
    assert not torch.equal(greedy(other, tokens, 30), greedy(model, tokens, 30))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(greedy(other, tokens, 30), greedy(model, tokens, 30))


def test_a_cropped_block_size(model):
    patch(model, "v1").crop_block_size(16)
    tokens = random_tokens(2, 5)
    got = greedy(model, tokens, 40)
    assert torch.equal(greedy(unpatch(model), tokens, 40), got)


def test_a_compiled_model_is_patched_inside(model):
    tokens = random_tokens(1, 5)
    want = greedy(model, tokens, 20)
    compiled = torch.compile(model, backend="eager")
    assert patch(compiled, "v1") is compiled
    assert "generate" in vars(model)
    assert torch.equal(greedy(compiled, tokens, 20), want)
    unpatch(compiled)
    assert "generate" not in vars(model)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_call_leaves_the_model_usable(model, error):
    tokens = random_tokens(2, 5)
    want = greedy(patch(model, "v1"), tokens, 30)
    calls = 0

    def interrupt(*_):
        nonlocal calls
        calls += 1
        if calls == 17:
            raise error("stop")

    hook = model.transformer.h[1].ln_2.register_forward_hook(interrupt)
    with pytest.raises(error):
        greedy(model, tokens, 30)
    hook.remove()
    assert torch.equal(greedy(model, tokens, 30), want)


def test_layers_that_add_to_a_linear_one(model):
    """Adapters, hooks and other activations are the model's own business."""

    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x.mean(-1, keepdim=True)

    tokens = random_tokens(2, 5)
    plain = greedy(model, tokens, 30)
    block = model.transformer.h[1]
    adapted = Adapted(64, 192)
    adapted.load_state_dict(block.attn.c_attn.state_dict())
    block.attn.c_attn = adapted
    block.mlp.gelu = nn.GELU(approximate="tanh")
    model.transformer.h[2].mlp.gelu = nn.SiLU()
    model.transformer.h[2].mlp.c_proj.register_forward_hook(lambda _, x, y: 2 * y)
    want = greedy(model, tokens, 30)
    assert not torch.equal(want, plain)
    assert torch.equal(greedy(patch(model, "v1"), tokens, 30), want)
    greedy(patch(model, "v3"), tokens, 30)  # layer 1 borrows: queries of the adapted projection


def test_a_model_that_computes_something_else_is_refused(nanogpt):
    class Parallel(nanogpt.Block):
        def forward(self, x):
            return x + self.attn(self.ln_1(x)) + self.mlp(self.ln_2(x))

    model = make_gpt(nanogpt)
    model.transformer.h[1].__class__ = Parallel
    with pytest.raises(ValueError, match=r"computes what nanoGPT's GPT does, got logits that differ by \d"):
        patch(model)


def test_what_is_refused(nanogpt, model):
    with pytest.raises(ValueError, match=r"v9.*v0.*v2w4"):
        patch(model, "v9")
    with pytest.raises(ValueError, match="got v3f, whose borrowing layers are fitted to calibration tokens"):
        patch(model, "v3f")
    with pytest.raises(ValueError, match="got v2w8, whose weights are quantised"):
        patch(model, "v2w8")
    with pytest.raises(TypeError, match=r"expected nanoGPT's GPT, got Linear \(in which .*generate"):
        patch(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"float32, bfloat16 or float16, got torch.float64"):
        patch(make_gpt(nanogpt).double())
    with pytest.raises(NotImplementedError, match="head_dim"):
        patch(make_gpt(nanogpt, n_embd=88, n_head=4))
    gpt = CachedGpt(model, "v1")
    with pytest.raises(ValueError, match="expected 1 to 10 tokens, to follow 0 within block_size 48"):
        gpt.forward(random_tokens(1, 11), gpt.make_cache(1, 10))
    with pytest.raises(ValueError, match="got 0"):
        greedy(patch(model), random_tokens(1, 0), 3)
    with pytest.raises(IndexError):
        greedy(model, torch.full((1, 2), SIZES["vocab_size"]), 3)
    with pytest.raises(RuntimeError, match="probability tensor"):
        model.generate(random_tokens(1, 2), 3, temperature=0.0)


def test_a_transformers_model_is_refused():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=1, n_embd=64, vocab_size=50)
    with pytest.raises(TypeError, match="expected nanoGPT's GPT, got GPT2LMHeadModel"):
        patch(transformers.GPT2LMHeadModel(config))


def test_example(nanogpt):
    program = REPOSITORY / "examples" / "nanogpt_drop_in.py"
    folder = Path(nanogpt.__file__).parent
    result = subprocess.run(
        [sys.executable, program, folder],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "python")},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "same tokens: True" in result.stdout
