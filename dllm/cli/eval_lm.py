"""The verb `dllm eval lm-eval`: lm-evaluation-harness with the models of this package."""

from __future__ import annotations

import typer

from dllm.cli.app import eval_app

PASS_ON = {
    "ignore_unknown_options": True,
    "allow_extra_args": True,
    "allow_interspersed_args": False,
}


@eval_app.command(name="lm-eval", context_settings=PASS_ON)
def lm_eval_(ctx: typer.Context) -> None:
    """Run lm-evaluation-harness, which then knows --model dllm. All arguments are its own.

    dllm eval lm-eval --model dllm --model_args pretrained=tiny,sampler=threshold:threshold=0.9
    --tasks gsm8k --output_path results

    Model arguments: pretrained, dtype, revision, preset, every option of decoding
    (max_new_tokens, sampler, cache, ...), mc_num (masked copies for a likelihood, 128),
    check_greedy, and record (a file for a JSON line per answer: forwards, tokens). Quote a value
    that holds commas, or give JSON:

    --model_args 'pretrained=tiny,sampler="klass:threshold=0.6,history=3"'

    --model_args '{"pretrained": "tiny", "sampler": "klass:threshold=0.6,history=3"}'

    The options of lm-eval itself: dllm eval lm-eval run --help.
    """
    from dllm.integrations.lm_eval import run

    run(ctx.args)
