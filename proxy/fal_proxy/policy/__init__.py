"""What may be asked: the target grammar, the endpoint globs, the cross-site rule. Pure decisions, no I/O."""
