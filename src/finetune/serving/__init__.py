"""Answer requests with a model: an ASGI application that knows no Ray, so that it runs wherever ASGI does."""
