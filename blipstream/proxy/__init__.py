# SPDX-License-Identifier: Apache-2.0
"""`blipstream proxy`: nginx with TLS and keys in front of a server, from a folder of its own."""
