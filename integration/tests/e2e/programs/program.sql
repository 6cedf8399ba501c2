PRAGMA journal_mode = DELETE;
CREATE TABLE points (id INTEGER PRIMARY KEY, x INTEGER, name TEXT);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000)
INSERT INTO points SELECT i, (i * 7919) % 10007, 'point ' || i FROM n;
CREATE INDEX by_x ON points (x);
UPDATE points SET name = name || ' moved' WHERE x % 3 = 0;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500000)
SELECT sum(i % 11) FROM n;
DELETE FROM points WHERE x % 5 = 0;
SELECT count(*), sum(x), max(length(name)) FROM points;
PRAGMA integrity_check;
