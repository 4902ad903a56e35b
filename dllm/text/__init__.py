"""Text in and out: tokenizers, chat templates, prompts, and the spelling of what is decoded."""
