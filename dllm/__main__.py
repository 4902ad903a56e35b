"""`python -m dllm` and the console script `dllm`."""

from dllm.cli import main

if __name__ == "__main__":
    main()
