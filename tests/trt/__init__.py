# SPDX-License-Identifier: Apache-2.0
"""Doubles of TensorRT and what they need; the suites are check_*.py, run by tests/test_trt.py."""
