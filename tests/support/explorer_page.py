"""What is written in the explorer's page."""

import json
import re


def data_of(html):
    """The page's data, from its HTML."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)
    return json.loads(found[1])
