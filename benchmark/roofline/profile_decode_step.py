"""One stage on the roofline, for a hardware profiler to wrap: ``bench_runner roofline`` in other words.

    python benchmark/roofline/profile_decode_step.py --version v2_decode --P 512 --model gpt2-medium
    ncu --profile-from-start off python benchmark/roofline/profile_decode_step.py --version v1

Without --version it is the stages v0_prefill, v1_prefill and v1_decode; a bare version is its decode stage.
What else is given goes to bench_runner as it is (``--device cuda``, ``--log-file FILE``, ...).
"""

import argparse
import runpy
from pathlib import Path

DEFAULT_STAGES = ["v0_prefill", "v1_prefill", "v1_decode"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", nargs="+", default=DEFAULT_STAGES, metavar="STAGE", help="what to run")
    parser.add_argument("--P", default="512", metavar="N", help="tokens of the prompt (512)")
    parser.add_argument("--batch", default="1", metavar="N", help="sequences at once (1)")
    parser.add_argument("--model", "--preset", default="gpt2-medium", help="gpt2-medium, or another preset")
    parser.add_argument("--dtype", default="float16", help="float16, bfloat16 or float32")
    words, others = parser.parse_known_args()
    bench = runpy.run_path(str(Path(__file__).parents[2] / "python/kvfuse/bench.py"))
    sizes = ["--preset", words.model, "--dtype", words.dtype, "--profile-P", words.P]
    sizes += ["--batch-size", words.batch]
    bench["run"](["roofline", *others, *sizes, "--stages", *words.version])


if __name__ == "__main__":
    main()
