# SPDX-License-Identifier: Apache-2.0
"""How good captions are, by COCO's metrics: `blipstream evaluate`.

annotations: the images and their references, in each layout that data sets have.
captions: captions that exist already, and to which images they belong.
asking: captions of a server, made by `bulk`.
tokens, java: texts -> tokens.
metrics, meteor: tokens -> the scores of each image, and of any set of images.
scores: the table of all images, which is kept as Parquet.
compare: two such tables, with confidence intervals.
output: what is printed.
"""
