"""Check a text that has to be XML elements, without ever expanding anything."""

from xml.parsers import expat

MOST_LEVELS = 100
"""Whoever reads the text later may take a level of its stack for each."""


def defect(text: str) -> str | None:
    """Say what is wrong with a text of XML elements, or return None.

    Several elements side by side, with or without text between them, are fine: that is how structured
    prompts look. Declarations, processing instructions and every entity except XML's own five are refused, so
    a parser can't be made to expand or fetch anything.
    """
    if "<!DOCTYPE" in text or "<!ENTITY" in text or "<!doctype" in text:
        return "it declares a DOCTYPE or an entity"
    found: list[str] = []
    elements = 0

    depth = 0

    def start(_name: str, _attributes: object) -> None:
        nonlocal elements, depth
        elements += 1
        depth += 1
        if depth > MOST_LEVELS + 1:  # with the one around them
            found.append(f"its elements are nested deeper than {MOST_LEVELS} levels")

    def end(_name: str) -> None:
        nonlocal depth
        depth -= 1

    def refuse_instruction(target: str, _data: str) -> None:
        found.append(f"it holds the processing instruction <?{target}?>")

    def refuse_entity(name: str, _is_parameter: bool) -> None:
        found.append(f"it uses the entity &{name};")

    parser = expat.ParserCreate()
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.ProcessingInstructionHandler = refuse_instruction
    parser.SkippedEntityHandler = refuse_entity
    # The wrapping makes one document of the elements; an extra closing tag ends it early and is reported as
    # junk after it. A DOCTYPE can't be inside an element at all.
    try:
        parser.Parse("<fragment>\n", False)
        parser.Parse(text, False)
        parser.Parse("</fragment>", True)
    except expat.ExpatError as error:
        return (
            f"{expat.ErrorString(error.code)} in line {max(1, error.lineno - 1)}, column {error.offset + 1}"
        )
    if found:
        return found[0]
    if elements < 2:
        return "it has no element such as <general_tags>...</general_tags>"
    return None
