"""The search for the options that suit a model and a kind of prompt (`dllm tune`)."""
