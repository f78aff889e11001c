# SPDX-License-Identifier: Apache-2.0
"""Images that are like a text or an image: `blipstream search`.

table: reads the embeddings that `blipstream embed` has written, block by block.
nearest: finds the rows whose embeddings are nearest to the query's.
images: finds the image that a row names, in a folder, a shard or the web.
searcher: asks the server for the query's embedding, and how well the nearest images match it.
output: prints the hits, and draws them.
"""
