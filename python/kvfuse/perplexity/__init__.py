"""``python -m kvfuse.perplexity --weights gpt2/ --version v1 v2``: how well a model predicts a text.

The same code as ``bench_runner perplexity`` computes it, and its records have the same fields; ``bench_runner
compare`` takes the files of both. Without --dataset the text is WikiText-2 (raw, test), downloaded once.
"""

from kvfuse.perplexity.dataset import Dataset, read_dataset, wikitext_tokens
from kvfuse.perplexity.evaluation import Calibration, Evaluation, Record
from kvfuse.perplexity.table import table

__all__ = ["Calibration", "Dataset", "Evaluation", "Record", "read_dataset", "table", "wikitext_tokens"]
