"""Operators' commands and the worker's jobs: each is a function that does its work and reports findings."""
