"""The agreement before a study: what sites answered, as one file with a digest, and what it means for the study.

Counting patients is the sites' work (`client/agreement`), pages are the coordinator's (`server/agreement`).
"""
