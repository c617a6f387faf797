"""Benchmarks of pcopy."""
