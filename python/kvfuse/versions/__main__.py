"""Lists the versions, one a line."""

from kvfuse.versions import listing

if __name__ == "__main__":
    print(listing())
