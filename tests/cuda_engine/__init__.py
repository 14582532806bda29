# SPDX-License-Identifier: Apache-2.0
"""Helpers and sources of the CUDA tests."""
