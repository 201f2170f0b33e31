"""A trace as one page for browsers, which needs nothing but itself.

content.py: trace -> what the page shows; writing.py: that, template.html, page.css and page.js -> one file
"""
