"""Who can supply what, as tables, on a page and in Markdown: what sites answered, and the verdict.

Asking is the fleet's work, judging is in `common/agreement`.
"""
