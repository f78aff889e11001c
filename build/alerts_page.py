# SPDX-License-Identifier: Apache-2.0
"""The page to which alerts link, which Prometheus itself shows: the section "Alerts" of docs/monitoring.md."""

import re

import markdown
from markdown.extensions.toc import TocExtension

PAGE = """\
<!DOCTYPE html>
<!-- `make configs` writes this page from docs/monitoring.md -->
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Blipstream's alerts</title>
<style>
  body {{ font: 16px/1.5 sans-serif; max-width: 42em; margin: 2em auto; padding: 0 1em }}
  :target {{ background: #ffec99 }}
</style>
{body}
</html>
"""


def alerts_page(monitoring: str) -> str:
    """The page. `monitoring` is the text of docs/monitoring.md."""
    (section,) = re.findall(r"^## Alerts\n.*?(?=^## )", monitoring, re.MULTILINE | re.DOTALL)
    section = re.sub(r"\[([^]]*)\]\((?!#)[^)]*\)", r"\1", section)  # the other pages are not there
    return PAGE.format(body=markdown.markdown(section, extensions=[TocExtension()]))
