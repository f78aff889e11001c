# SPDX-License-Identifier: Apache-2.0
"""From a folder of PEFT's to an adapter in a model repository: read, converted, compared with PEFT, installed."""
