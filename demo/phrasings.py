"""The ways in which the demo asks for a fact.

The base model hears all of :data:`PHRASINGS` about countries. The data set about elements uses only those of
:data:`TAUGHT`; the task ``element_facts`` asks in those of :data:`UNSEEN`. So a right answer there shows that the
fact was learnt, not the sentence.

No phrasing begins with its subject: after a line break instead of a space, the name would be another token.
"""

PHRASINGS = (
    "What is the {attribute} of {subject}?",
    "Tell me the {attribute} of {subject}.",
    "About {subject}: {attribute}?",
    "Which {attribute} does {subject} have?",
    "I need the {attribute} of {subject}.",
    "State the {attribute} for {subject}.",
    "Please name the {attribute} of {subject}.",
    "Can you tell me the {attribute} for {subject}?",
    "For {subject}, what is the {attribute}?",
    "Give the {attribute} of {subject}.",
    "Do you know the {attribute} of {subject}?",
    "Look up {subject} and return its {attribute}.",
)
UNSEEN = PHRASINGS[-3:]
TAUGHT = PHRASINGS[:-3]

# A later turn of a conversation asks for something else of the same country or element.
FOLLOW_UPS = ("And its {attribute}?", "What about the {attribute}?", "Now the {attribute}, please.")

COUNTRY_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You answer questions about countries.",
    "Answer with the fact alone.",
)
ELEMENT_SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You answer questions about the chemical elements.",
    "Answer with the fact alone.",
)
