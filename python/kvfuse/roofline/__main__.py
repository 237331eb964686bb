"""``python -m kvfuse.roofline``: a demonstration prediction, which needs no GPU; with words the commands of
``kvfuse roofline``."""

import sys

from kvfuse import roofline


def demonstration() -> int:
    """Prints what a matrix-vector product takes in each format, and which formats to run a model in."""
    b10 = roofline.get_hardware("b10")
    print(f"{b10.info.title}: a matrix-vector product, 4096 x 4096")
    for precision in ("fp16", "fp8", "nvfp4"):
        one = roofline.predict_gemv(b10, 4096, 4096, precision)
        print(
            f"  {precision:6} {one.predicted_time_us:8.2f} us, bound by {one.bottleneck}: "
            f"{one.ai:.3f} FLOP/byte, the ridge is at {one.critical_ai:.0f}"
        )
    answer = roofline.recommend(b10, roofline.Model.preset("llama-3-8b"))
    print(f"llama-3-8b, decode at 4096 tokens: {answer.strategy_name} with {answer.attention}")
    print(
        f"  {answer.predicted_time_ms:.1f} ms instead of {answer.baseline_time_ms:.1f} ms a token, "
        f"{answer.predicted_speedup:.2f} times as fast"
    )
    print("more: kvfuse roofline --help")
    return 0


def main() -> int:
    if len(sys.argv) == 1:
        return demonstration()
    from kvfuse.roofline.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
