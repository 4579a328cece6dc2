"""The Darwin protocol: layouts, messages, sessions.

Public for those who bring their own I/O, write tools or study the protocol;
`nstat_async.Monitor` needs none of it.
"""
