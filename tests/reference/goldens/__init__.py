# SPDX-License-Identifier: MIT
"""Makers of golden files: one module per file family, all used by make_golden.py."""
