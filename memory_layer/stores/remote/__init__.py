"""What adapters of services over a network share.

faults    what went wrong, in our words
urls      which URL of a service may be used
http      an HTTP request with its tries, Retry-After
threads   a blocking client library in threads, within a budget of time
aws       clients of AWS and what their failures mean
"""
