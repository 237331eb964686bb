"""What scripts/gpu_check.py runs: parts that each give rows, one table and one JSON file of them."""
