-- The catalog of a store, version 4.  This file is the whole schema; fanout/catalog is the only code that reads it.
--
-- What it promises.  One row per object and one per (aggregate, pool), never one per object and pool.  Nothing is updated when
-- a new version of an object arrives: which version is active is derived.  Nothing is removed by a crash: what is not in a
-- committed row does not exist, and its space is free.
--
-- Version 1 had neither erased nor deletion nor dead_region, and no deletions in the intake: what a catalog of version 1 gets when it is
-- opened for writing is these (`connection.py`).  Version 2 had no retired.  Up to version 3 the intake was one trigger.
--
-- Conventions.  Times are nanoseconds since 1970 (UTC) and come from the catalog's clock.  Ids that leave the catalog are the
-- 32 hexadecimal digits of 16 random bytes, or an object's version.  Sizes and offsets are bytes.  Sets of members are JSON
-- arrays of [first, count] ranges, NULL for "all of them".  Names of pools and nodes are stored once and referred to by number.

CREATE TABLE store (
    one            INTEGER PRIMARY KEY CHECK (one = 1),        -- there is exactly one row
    uuid           TEXT    NOT NULL CHECK (length(uuid) = 32), -- the store; also in every superblock
    created        INTEGER NOT NULL,
    csn            INTEGER NOT NULL CHECK (csn >= 0),          -- commit sequence number of the last commit
    next_aggregate INTEGER NOT NULL CHECK (next_aggregate > 0),
    next_object    INTEGER NOT NULL CHECK (next_object > 0),   -- also the next version: grows for ever, never reused
    fences         INTEGER NOT NULL DEFAULT 0                  -- fence commits; the write that makes a fence a real commit
) STRICT;

CREATE TABLE pool (
    id   INTEGER PRIMARY KEY,
    uuid TEXT NOT NULL UNIQUE CHECK (length(uuid) = 32),       -- also in the superblock of every volume of the pool
    name TEXT NOT NULL UNIQUE CHECK (length(name) BETWEEN 1 AND 30),
    kind TEXT NOT NULL CHECK (kind IN ('primary', 'copy', 'active-data'))
) STRICT;

CREATE TABLE node (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE volume (
    id       INTEGER PRIMARY KEY,
    uuid     TEXT    NOT NULL UNIQUE CHECK (length(uuid) = 32),
    pool     INTEGER NOT NULL REFERENCES pool (id),
    path     TEXT    NOT NULL UNIQUE,                          -- absolute
    size     INTEGER NOT NULL CHECK (size > 0),                -- as in the superblock
    granule  INTEGER NOT NULL CHECK (granule > 0),
    epoch    INTEGER NOT NULL CHECK (epoch >= 0),              -- counts the openings for writing
    device   INTEGER NOT NULL,                                 -- st_dev of a file, st_rdev of a block device: is the right thing mounted?
    inode    INTEGER NOT NULL,                                 -- st_ino of a file
    is_block INTEGER NOT NULL CHECK (is_block IN (0, 1))
) STRICT;

CREATE INDEX volume_pool ON volume (pool);

-- Volumes that were given up.  Every other volume's directory has to name them: a rebuild leaves aside what comes back.  Of those that
-- only the directories name, because the catalog was made anew, no pool, path or device is known.
CREATE TABLE retired (
    uuid   TEXT    NOT NULL PRIMARY KEY CHECK (length(uuid) = 32),
    csn    INTEGER NOT NULL CHECK (csn > 0),                   -- of the commit that gave it up
    at     INTEGER NOT NULL,
    epoch  INTEGER NOT NULL CHECK (epoch >= 0),                -- of its last opening: a later one means that it was taken back
    pool   INTEGER REFERENCES pool (id),
    path   TEXT,
    device INTEGER                                             -- as in volume
) STRICT, WITHOUT ROWID;

-- Every attempt that reached the catalog.  The key settles a commit whose outcome is unknown: whoever inserts it first is right.
CREATE TABLE attempt (
    tx              TEXT    NOT NULL CHECK (length(tx) = 32),  -- the transaction; a resend carries the same
    attempt         INTEGER NOT NULL CHECK (attempt > 0),
    state           TEXT    NOT NULL CHECK (state IN ('committed', 'fenced')),
    csn             INTEGER CHECK (state = 'fenced' OR csn > 0),
    origin          TEXT CHECK (origin IN ('client', 'reconcile')),
    node            INTEGER REFERENCES node (id),
    kind            INTEGER CHECK (kind IN (0, 1, 2)),         -- 0 backup, 1 archive, 2 space-managed
    destination     TEXT,                                      -- name of the destination primary
    required        TEXT CHECK (required IS NULL OR json_valid(required)), -- names of the secondary pools that the rules demanded, in list order
    first_aggregate INTEGER,                                   -- its aggregates are numbered in a row
    aggregates      INTEGER,
    at              INTEGER NOT NULL,
    PRIMARY KEY (tx, attempt)
) STRICT, WITHOUT ROWID;

-- A transaction commits once, whatever is sent again.
CREATE UNIQUE INDEX attempt_committed_once ON attempt (tx) WHERE state = 'committed';

CREATE TABLE aggregate (
    id           INTEGER PRIMARY KEY,
    uuid         TEXT    NOT NULL UNIQUE CHECK (length(uuid) = 32), -- also in headers, footers and directories
    tx           TEXT    NOT NULL,
    attempt      INTEGER NOT NULL,
    csn          INTEGER NOT NULL,
    node         INTEGER NOT NULL REFERENCES node (id),
    kind         INTEGER NOT NULL CHECK (kind IN (0, 1, 2)),
    pool         INTEGER NOT NULL REFERENCES pool (id),        -- the primary
    first_object INTEGER NOT NULL,                             -- members are numbered in a row: member n is object first_object + n
    objects      INTEGER NOT NULL CHECK (objects > 0),
    bytes        INTEGER NOT NULL CHECK (bytes >= 0),          -- of client data
    at           INTEGER NOT NULL,
    FOREIGN KEY (tx, attempt) REFERENCES attempt (tx, attempt)
) STRICT;

CREATE INDEX aggregate_pool ON aggregate (pool, id);
CREATE INDEX aggregate_tx ON aggregate (tx, attempt);

CREATE TABLE object (
    id        INTEGER PRIMARY KEY,                             -- the version
    node      INTEGER NOT NULL,
    kind      INTEGER NOT NULL,
    name      BLOB    NOT NULL CHECK (length(name) BETWEEN 1 AND 1024),
    aggregate INTEGER NOT NULL REFERENCES aggregate (id),
    start     INTEGER NOT NULL CHECK (start >= 0),             -- of the aggregate's data
    length    INTEGER NOT NULL CHECK (length >= 0),
    digest    BLOB    NOT NULL CHECK (length(digest) = 16)     -- XXH3-128, canonical
) STRICT;

-- The active version of (node, kind, name) is the one with the highest id; SQLite appends the id to every key of the index.
CREATE INDEX object_name ON object (node, kind, name);

CREATE TABLE copy (
    aggregate INTEGER NOT NULL REFERENCES aggregate (id),
    pool      INTEGER NOT NULL REFERENCES pool (id),
    present   TEXT CHECK (present IS NULL OR json_valid(present)), -- members that the pool holds; NULL: all
    csn       INTEGER NOT NULL,                                -- of the commit that last changed the copy; directories are compared with it
    PRIMARY KEY (aggregate, pool)
) STRICT, WITHOUT ROWID;

CREATE INDEX copy_pool ON copy (pool, aggregate);

CREATE TABLE placement (
    aggregate   INTEGER NOT NULL,
    pool        INTEGER NOT NULL,
    span        INTEGER NOT NULL CHECK (span >= 0),            -- number of the span in this copy of the aggregate
    volume      INTEGER NOT NULL REFERENCES volume (id),
    offset      INTEGER NOT NULL CHECK (offset > 0),           -- of the header on the volume
    length      INTEGER NOT NULL CHECK (length > 0),           -- of the region that the span keeps
    used        INTEGER NOT NULL CHECK (used BETWEEN 1 AND length),
    data_start  INTEGER NOT NULL CHECK (data_start >= 0),      -- of the aggregate's data
    data_length INTEGER NOT NULL CHECK (data_length >= 0),
    PRIMARY KEY (aggregate, pool, span, volume), -- numbers come again after a volume was given up, and perhaps it does, too
    FOREIGN KEY (aggregate, pool) REFERENCES copy (aggregate, pool)
) STRICT, WITHOUT ROWID;

-- Two spans at one place would be the worst that can happen; the catalog refuses to write it down.
CREATE UNIQUE INDEX placement_place ON placement (volume, offset);

CREATE TABLE gap (
    aggregate INTEGER NOT NULL REFERENCES aggregate (id),
    pool      INTEGER NOT NULL REFERENCES pool (id),
    missing   TEXT CHECK (missing IS NULL OR json_valid(missing)), -- members that the pool lacks; NULL: all
    reason    TEXT    NOT NULL,
    errno     INTEGER NOT NULL DEFAULT 0,
    since     INTEGER NOT NULL,                                -- of the commit that opened it
    updated   INTEGER NOT NULL,                                -- of the last attempt to close it
    PRIMARY KEY (aggregate, pool)
) STRICT, WITHOUT ROWID;

CREATE INDEX gap_pool ON gap (pool);

-- Members that were deleted, of aggregates that live on: their objects are gone, their numbers are not given again.
CREATE TABLE erased (
    aggregate INTEGER PRIMARY KEY REFERENCES aggregate (id),
    members   TEXT    NOT NULL CHECK (json_valid(members)),
    objects   INTEGER NOT NULL CHECK (objects > 0),            -- how many these are
    bytes     INTEGER NOT NULL CHECK (bytes >= 0)              -- of these
) STRICT;

-- Aggregates of which nothing is left: only the row of the aggregate, until no volume's directory can name it any more.
CREATE TABLE deletion (
    aggregate INTEGER PRIMARY KEY REFERENCES aggregate (id),
    csn       INTEGER NOT NULL,                                -- of the commit that deleted it
    kept      INTEGER NOT NULL CHECK (kept IN (0, 1))          -- 1: a volume that took no part in a rebuild may name it
) STRICT;

-- Their regions: each is free once the directory of its volume has taken the delete for good.
CREATE TABLE dead_region (
    volume    INTEGER NOT NULL REFERENCES volume (id),
    offset    INTEGER NOT NULL,
    length    INTEGER NOT NULL,
    aggregate INTEGER NOT NULL REFERENCES deletion (aggregate),
    PRIMARY KEY (volume, offset)
) STRICT, WITHOUT ROWID;

CREATE INDEX dead_region_aggregate ON dead_region (aggregate);

-- One commit group in one statement.  The sqlite3 module gives up the GIL at every statement and every row, and beside one busy
-- Python thread each return costs up to 5 ms; so a whole group arrives as one row of this view, and the statement is its own
-- transaction.  Measured beside a busy thread, objects alone, groups of 1,000: executemany 700 objects/s, BEGIN + one INSERT + COMMIT
-- 43,000, one statement 90,000 (alone 180,000, 238,000 and 214,000).
--
-- Numbers and texts come as JSON arrays; names and digests, which are bytes, as two long blobs that members point into.
--
-- What most groups have nothing of, and the objects, go on to views of their own: a trigger is a program of its own.  Each DELETE with a
-- query makes a table to look things up in, also of nothing, which a commit of one object felt.  And rows go through
-- another such table where an earlier statement of the same program, or one of its foreign keys, has looked at what they go into.
CREATE VIEW intake (
    csn,        -- the counters before this group: a second writer would be noticed
    aggregate,
    object,
    at,
    attempts,   -- [tx, attempt, origin, node, kind, destination, required, first aggregate, aggregates]: the n-th gets csn + n + 1
    aggregates, -- [uuid, n of its attempt, primary, first member, members, bytes]
    copies,     -- [aggregate uuid, pool, present, n of its attempt]
    placements, -- [aggregate uuid, pool, span, volume uuid, offset, length, used, data start, data length]
    gaps,       -- [aggregate uuid, pool, missing, reason, errno]
    closed,     -- [aggregate uuid, pool]: gaps that are gone
    deletions,  -- [aggregate uuid, n of its attempt, all members deleted so far, how many, bytes]; members NULL: nothing is left
    members,    -- for each aggregate a list of texts: 16 characters (first byte of the name + 1) * 2048 + its length, 20 start, 20 length
    names,
    digests
) AS SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL;

CREATE VIEW intake_objects (aggregate, object, members, names, digests) AS SELECT NULL, NULL, NULL, NULL, NULL;
CREATE VIEW intake_gaps (at, gaps, closed) AS SELECT NULL, NULL, NULL;
CREATE VIEW intake_deletions (csn, deletions) AS SELECT NULL, NULL;

CREATE TRIGGER intake_commit INSTEAD OF INSERT ON intake
BEGIN
    SELECT raise(ABORT, 'another writer has changed the catalog')
    FROM store
    WHERE csn <> NEW.csn OR next_aggregate <> NEW.aggregate OR next_object <> NEW.object;

    UPDATE store
    SET csn = csn + json_array_length(NEW.attempts),
        next_aggregate = next_aggregate + json_array_length(NEW.aggregates),
        next_object = next_object + length(NEW.digests) / 16;

    INSERT INTO node (name)
    SELECT DISTINCT json_extract(value, '$[3]') FROM json_each(NEW.attempts) WHERE json_extract(value, '$[3]') IS NOT NULL
    ON CONFLICT DO NOTHING;

    INSERT INTO attempt (tx, attempt, state, csn, origin, node, kind, destination, required, first_aggregate, aggregates, at)
    SELECT json_extract(value, '$[0]'),
           json_extract(value, '$[1]'),
           'committed',
           NEW.csn + key + 1,
           json_extract(value, '$[2]'),
           (SELECT id FROM node WHERE name = json_extract(value, '$[3]')),
           json_extract(value, '$[4]'),
           json_extract(value, '$[5]'),
           json_extract(value, '$[6]'),
           NEW.aggregate + json_extract(value, '$[7]'),
           json_extract(value, '$[8]'),
           NEW.at
    FROM json_each(NEW.attempts);

    INSERT INTO aggregate (id, uuid, tx, attempt, csn, node, kind, pool, first_object, objects, bytes, at)
    SELECT NEW.aggregate + g.key,
           json_extract(g.value, '$[0]'),
           a.tx,
           a.attempt,
           a.csn,
           a.node,
           a.kind,
           (SELECT id FROM pool WHERE name = json_extract(g.value, '$[2]')),
           NEW.object + json_extract(g.value, '$[3]'),
           json_extract(g.value, '$[4]'),
           json_extract(g.value, '$[5]'),
           NEW.at
    FROM json_each(NEW.aggregates) AS g
    JOIN json_each(NEW.attempts) AS t ON t.key = json_extract(g.value, '$[1]')
    JOIN attempt AS a ON a.tx = json_extract(t.value, '$[0]') AND a.attempt = json_extract(t.value, '$[1]');

    INSERT INTO copy (aggregate, pool, present, csn)
    SELECT (SELECT id FROM aggregate WHERE uuid = json_extract(value, '$[0]')),
           (SELECT id FROM pool WHERE name = json_extract(value, '$[1]')),
           json_extract(value, '$[2]'),
           NEW.csn + json_extract(value, '$[3]') + 1
    FROM json_each(NEW.copies)
    WHERE true
    ON CONFLICT (aggregate, pool) DO UPDATE SET present = excluded.present, csn = excluded.csn;

    INSERT INTO placement (aggregate, pool, span, volume, offset, length, used, data_start, data_length)
    SELECT (SELECT id FROM aggregate WHERE uuid = json_extract(value, '$[0]')),
           (SELECT id FROM pool WHERE name = json_extract(value, '$[1]')),
           json_extract(value, '$[2]'),
           (SELECT id FROM volume WHERE uuid = json_extract(value, '$[3]')),
           json_extract(value, '$[4]'),
           json_extract(value, '$[5]'),
           json_extract(value, '$[6]'),
           json_extract(value, '$[7]'),
           json_extract(value, '$[8]')
    FROM json_each(NEW.placements);

    INSERT INTO intake_gaps VALUES (NEW.at, NEW.gaps, NEW.closed);
    INSERT INTO intake_objects VALUES (NEW.aggregate, NEW.object, NEW.members, NEW.names, NEW.digests);
    INSERT INTO intake_deletions VALUES (NEW.csn, NEW.deletions);
END;

CREATE TRIGGER intake_objects_commit INSTEAD OF INSERT ON intake_objects
BEGIN
    -- The numbers are characters, wider than they can be, so that spaces part them: reading them out of an array each took twice as long.
    INSERT INTO object (id, node, kind, name, aggregate, start, length, digest)
    SELECT g.first_object + m.key,
           g.node,
           g.kind,
           substr(NEW.names, m.value >> 11, m.value & 2047),
           g.id,
           CAST(substr(m.value, 17, 20) AS INTEGER),
           CAST(substr(m.value, 37) AS INTEGER),
           substr(NEW.digests, (g.first_object - NEW.object + m.key) * 16 + 1, 16)
    FROM json_each(NEW.members) AS a
    JOIN aggregate AS g ON g.id = NEW.aggregate + a.key
    JOIN json_each(a.value) AS m;
END;

CREATE TRIGGER intake_gaps_commit INSTEAD OF INSERT ON intake_gaps
WHEN NEW.gaps <> '[]' OR NEW.closed <> '[]'
BEGIN
    INSERT INTO gap (aggregate, pool, missing, reason, errno, since, updated)
    SELECT (SELECT id FROM aggregate WHERE uuid = json_extract(value, '$[0]')),
           (SELECT id FROM pool WHERE name = json_extract(value, '$[1]')),
           json_extract(value, '$[2]'),
           json_extract(value, '$[3]'),
           json_extract(value, '$[4]'),
           NEW.at,
           NEW.at
    FROM json_each(NEW.gaps)
    WHERE true
    ON CONFLICT (aggregate, pool)
    DO UPDATE SET missing = excluded.missing, reason = excluded.reason, errno = excluded.errno, updated = excluded.updated;

    DELETE FROM gap
    WHERE (aggregate, pool) IN (
        SELECT g.id, p.id
        FROM json_each(NEW.closed) AS c
        JOIN aggregate AS g ON g.uuid = json_extract(c.value, '$[0]')
        JOIN pool AS p ON p.name = json_extract(c.value, '$[1]')
    );
END;

CREATE TRIGGER intake_deletions_commit INSTEAD OF INSERT ON intake_deletions
WHEN NEW.deletions <> '[]'
BEGIN
    -- First what is erased; then, of what is left without a member, all but the row of the aggregate.
    INSERT INTO erased (aggregate, members, objects, bytes)
    SELECT g.id, json_extract(d.value, '$[2]'), json_extract(d.value, '$[3]'), json_extract(d.value, '$[4]')
    FROM json_each(NEW.deletions) AS d
    JOIN aggregate AS g ON g.uuid = json_extract(d.value, '$[0]')
    WHERE json_extract(d.value, '$[2]') IS NOT NULL
    ON CONFLICT (aggregate) DO UPDATE SET members = excluded.members, objects = excluded.objects, bytes = excluded.bytes;

    DELETE FROM object
    WHERE id IN (
        SELECT o.id
        FROM json_each(NEW.deletions) AS d
        JOIN aggregate AS g ON g.uuid = json_extract(d.value, '$[0]')
        JOIN json_each(coalesce(json_extract(d.value, '$[2]'), json_array(json_array(0, g.objects)))) AS r
        JOIN object AS o
          ON o.id >= g.first_object + json_extract(r.value, '$[0]')
         AND o.id < g.first_object + json_extract(r.value, '$[0]') + json_extract(r.value, '$[1]')
         AND o.aggregate = g.id
    );

    -- Their directories are behind now: they have to say what was deleted.
    UPDATE copy
    SET csn = NEW.csn + json_extract(d.value, '$[1]') + 1
    FROM json_each(NEW.deletions) AS d
    JOIN aggregate AS g ON g.uuid = json_extract(d.value, '$[0]')
    WHERE copy.aggregate = g.id;

    -- A gap of which no member is left.
    DELETE FROM gap
    WHERE missing IS NOT NULL
      AND aggregate IN (
        SELECT g.id FROM json_each(NEW.deletions) AS d JOIN aggregate AS g ON g.uuid = json_extract(d.value, '$[0]')
    )
      AND NOT EXISTS (
        SELECT 1
        FROM aggregate AS g
        JOIN json_each(gap.missing) AS r
        JOIN object AS o
          ON o.id >= g.first_object + json_extract(r.value, '$[0]')
         AND o.id < g.first_object + json_extract(r.value, '$[0]') + json_extract(r.value, '$[1]')
         AND o.aggregate = g.id
        WHERE g.id = gap.aggregate
    );

    INSERT INTO deletion (aggregate, csn, kept)
    SELECT g.id, NEW.csn + json_extract(d.value, '$[1]') + 1, 0
    FROM json_each(NEW.deletions) AS d
    JOIN aggregate AS g ON g.uuid = json_extract(d.value, '$[0]')
    WHERE json_extract(d.value, '$[2]') IS NULL;

    INSERT INTO dead_region (volume, offset, length, aggregate)
    SELECT l.volume, l.offset, l.length, l.aggregate
    FROM json_each(NEW.deletions) AS d
    JOIN aggregate AS g ON g.uuid = json_extract(d.value, '$[0]')
    JOIN deletion AS x ON x.aggregate = g.id
    JOIN placement AS l ON l.aggregate = g.id;

    DELETE FROM placement WHERE aggregate IN (
        SELECT g.id
        FROM json_each(NEW.deletions) AS d
        JOIN aggregate AS g ON g.uuid = json_extract(d.value, '$[0]')
        WHERE json_extract(d.value, '$[2]') IS NULL
    );
    DELETE FROM copy WHERE aggregate IN (
        SELECT g.id
        FROM json_each(NEW.deletions) AS d
        JOIN aggregate AS g ON g.uuid = json_extract(d.value, '$[0]')
        WHERE json_extract(d.value, '$[2]') IS NULL
    );
    DELETE FROM gap WHERE aggregate IN (
        SELECT g.id
        FROM json_each(NEW.deletions) AS d
        JOIN aggregate AS g ON g.uuid = json_extract(d.value, '$[0]')
        WHERE json_extract(d.value, '$[2]') IS NULL
    );
    DELETE FROM erased WHERE aggregate IN (
        SELECT g.id
        FROM json_each(NEW.deletions) AS d
        JOIN aggregate AS g ON g.uuid = json_extract(d.value, '$[0]')
        WHERE json_extract(d.value, '$[2]') IS NULL
    );
END;
