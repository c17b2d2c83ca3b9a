"""What the codes of findings mean and how such rows are mended, for people who did not write the checks.

A finding's message says what is wrong at one place; what stands here is said once for all of a kind. A code that is not
listed needs no more words than its message.
"""

_TEXT_EMPTY = "Nothing but white space stands there. Fill it in, or remove the message or the row."
_TEXT_NUL = "U+0000 is no text, and mostly a sign of a broken export. Remove the character from the source."
_TURN_ROLES = "The roles are system, user, assistant and pretraining."

EXPLANATIONS = {
    "alpaca-history-not-a-pair": "history holds earlier turns, each a list of two texts: [question, answer].",
    "byte-order-mark": "The file was saved as 'UTF-8 with BOM'. Save it as UTF-8 without one.",
    "content-empty": _TEXT_EMPTY,
    "content-has-nul": _TEXT_NUL,
    "content-not-text": "content is a text; lists of parts, as for images, are not trained here.",
    "document-empty": _TEXT_EMPTY,
    "document-has-nul": _TEXT_NUL,
    "document-missing": "The column that holds a document's text is named by document_column.",
    "duplicate-key": "JSON readers keep one of the two values without a word; it is not for us to choose.",
    "duplicate-row": "The same is trained in a row further up, so it weighs twice. Both are trained.",
    "format-unknown": "Rows are known by their keys: messages; conversations; instruction and output; prompt and "
    "completion; input_ids and labels; or the column that document_column names. Rename the columns of the source.",
    "label-negative": "A label is the id of the token to learn, or -100 where nothing is learnt.",
    "length-mismatch": "Each token has one label.",
    "line-too-long": "No real row is so long. Mostly line breaks are missing between rows.",
    "lone-surrogate": "Half of a character that UTF-16 writes in two parts, left over from cutting a text. "
    "Write the whole character or remove it.",
    "messages-collide": "The row could be read in two ways. Remove one of them from the source.",
    "messages-missing": "Rows of another shape (conversations, instruction) need that data_format, or auto.",
    "no-assistant-turn": "Only assistant turns (and pretraining texts) are trained, so the row would teach nothing. "
    "With unmask, user turns are trained too.",
    "no-trained-label": "Nothing precedes the first token, so nothing predicts it; behind it no label is trained.",
    "not-an-object": "A row is a JSON object, {...}. If the file is one large list, name it .json.",
    "not-json": "Each line is one JSON value by itself: no line breaks inside, no comma between rows.",
    "not-utf8": "The text was written in another encoding, or the file is damaged. Convert it to UTF-8.",
    "number-out-of-range": "JSON as read here has no NaN and no infinity.",
    "other-format": "Conversations, documents and token ids cannot be mixed in one data set. Give each its own.",
    "prompt-completion-unwanted": "Rows with a label are preference data; those whose label is false show what not "
    "to say.",
    "reasoning-not-on-assistant": "Reasoning is what the model thinks before it answers, so it belongs to an assistant "
    "turn.",
    "role-missing": _TURN_ROLES,
    "role-unknown": f"{_TURN_ROLES} Rename it in the source; ShareGPT's names need data_format sharegpt or auto.",
    "sharegpt-speaker-unknown": "Rename the speaker in the source, human for the user and gpt for the model.",
    "sharegpt-tool-turn": "Tool calls have no place in the messages format. Remove these rows from the source.",
    "system-not-first": "Chat templates put the system message at the start.",
    "system-repeated": "Join the system messages into one at the start.",
    "time-missing": "With data_since every row needs its time; data_time_column names the key that holds it.",
    "time-unreadable": "A time is ISO 8601 text (2026-11-01T02:00:00Z), or seconds or milliseconds since 1970. One "
    "from before 1990 was meant otherwise. Without a zone it is UTC.",
    "too-deep": "Lists and objects stand in each other more often than any real row needs.",
    "too-many-turns": "So long a conversation mostly comes from rows joined by mistake. Split it.",
    "truncated-line": "A line ends in the middle. The last one of a file: it was cut off, and rows may be missing "
    "behind it; export it again. Every one: the JSON is spread over lines; write one object a line.",
    "unmask-not-boolean": "unmask trains user turns too; it is true or false, without quotes.",
}
