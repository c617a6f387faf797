"""Tests of pcopy."""
