"""What an evaluation found, for people and for other programs: JSON, a page, Markdown, flat metrics, a table."""
