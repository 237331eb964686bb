"""kvfuse and its peers on the CPU, measured in turn: see main."""
