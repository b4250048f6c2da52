"""Alignment: reward model, DPO and GRPO on prompts computed once, and the watch that sees a policy collapse."""
