"""Show a comparison: as sentences, as Markdown, LaTeX and CSV tables, and as an HTML page with plots."""
