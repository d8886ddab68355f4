"""The course: its syllabus, what a learner has done of it, its checks and its pages.

`syllabus.toml` is the only place where the course stands; the command line, the static page and
`docs/course/README.md` are made of it.
"""
