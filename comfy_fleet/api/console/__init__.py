"""The console: pages for operators at ``/console``, and what they are made of.

A page asks the same functions as the REST routes, so that who may see or change what is decided in one place.
Its parts that change are asked for anew, at the page's own address with the header ``HX-Request``, when the
stream at ``/console/live`` says that something has happened. What changes something is a form's POST with
that header: no page of another site can send it.
"""
