"""The roofline toolkit from end to end, without a GPU: what Llama-3 8B should run with on a GB10, and why."""

import numpy as np
from kvfuse import roofline

LLAMA = {"H": 4096, "L": 32, "nh": 32, "nkv": 8, "dh": 128, "dff": 14336}

b10 = roofline.get_hardware("b10", profile="reference")  # with the published figures
model = roofline.Model.of_letters(LLAMA)

print("A matrix of 4096 x 4096 times a vector:")
for precision in ("fp16", "fp8", "nvfp4"):
    product = roofline.predict_gemv(b10, 4096, 4096, precision)
    print(f"  {precision}: {product.predicted_time_us:.2f} us, bound by {product.bottleneck}")

print("A decode step after 4096 tokens, by strategy:")
answer = roofline.recommend(b10, model, phase="decode", seq_len=4096)
for candidate in answer.candidates:
    verdict = candidate.refusal or "considered"
    print(f"  {candidate.strategy_name}: {candidate.time_ms:.2f} ms, {candidate.speedup:.2f} x ({verdict})")

print(f"Recommended: {answer.strategy_name} with {answer.attention}, because:")
for reason in answer.reasons:
    print(f"  {reason}")

print("The cache of 32768 tokens:")
for precision, recent_window in (("fp16", 0), ("int8", 0), ("nvfp4", 256)):
    nbytes = roofline.kv_cache_bytes(model, 32768, precision=precision, recent_window=recent_window)
    print(f"  {precision}: {nbytes / 2**20:.0f} MiB")

print("What the formats do to normally distributed values:")
values = np.random.default_rng(0).normal(size=(64, 128))
for precision in ("fp8", "int8", "int4", "nvfp4"):
    error = roofline.measure_quality(values, precision).relative_rms_error
    print(f"  {precision}: {100 * error:.2f} % relative error")

quantiser = roofline.DynamicQuantizer(["nvfp4", "fp8", "fp16"], calm_steps=2)
for step in range(5):
    wild = values.ravel().copy()
    wild[: 20 if step == 1 else 0] *= 50
    decision = quantiser.observe("layer 0 keys", wild)
    print(f"Step {step}: {decision.before} -> {decision.after} ({decision.reason})")
