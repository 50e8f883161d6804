"""Signatures of archives, by Ed25519, in the files of minisign. Either tool checks what the other has signed.

keys: key files. passwords: where a key's password comes from. signatures: NAME.mar.minisig, beside an archive.
stores: whether all that a model store holds is signed. commands: what the command line's commands do.
"""
