"What a figure shows, said in words for those who do not see it"

import re


def figure_alt(source: str) -> str:
    "What a plot shows, in the words of its own labels"
    words = re.findall(r"(?:title|xlabel|ylabel|label|suptitle)\s*[=(]\s*f?[\"']([^\"']+)", source)
    return "Figure: " + (
        re.sub(r"\{[^}]*\}", "…", "; ".join(dict.fromkeys(words))) or "made by the code above"
    )
