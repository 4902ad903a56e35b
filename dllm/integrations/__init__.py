"""Hand-overs to other engines, each optional: transformers, vLLM, lm-evaluation-harness."""
