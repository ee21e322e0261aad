"""What `import fedgraft` offers to Python: the same work as the commands', as calls that give values.
Nothing here prints, but for a bar of progress; nothing is worked out that another room does not work out.
"""
